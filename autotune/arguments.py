"""What the command line takes: commands, options, and the table of exit codes that ``--help`` prints."""

from __future__ import annotations

import argparse

from autotune import __version__
from autotune.options import (
    DEFAULT_BUDGET_S,
    GPU_BUDGET_S,
    QUICK_BUDGET_S,
    RECORD_BUDGET_S,
    RECORDED_MODEL,
    RUN_BUDGET_S,
)

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = ("tune", "show", "retune", "explain", "verify", "model", "host", "schema", "cache")
_EPILOG = """\
exit codes:
  0  done                                  6  the time budget is too small
  1  the output can't be written, or       7  the benchmark failed
     the system refused something else     8  the cache could not be written or read (a result is still printed)
  2  wrong usage                           9  nothing is saved for this model on this host
  3  the model file is missing or bad     10  no kernel for it, or not the one asked for, can run here
  4  the model does not fit the memory   130  stopped by Ctrl-C
  5  no configuration keeps the TPOT or TTFT limit

`autotune MODEL` is short for `autotune tune MODEL`.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words after the program's name; ``command`` of the result is the command's name in words.

    Without a command it is ``tune``. Exits with a message and code 2 where the words make no command, and with 0 after
    ``--help`` and ``--version``.
    """
    implied = arguments and arguments[0] not in (*COMMANDS, "-h", "--help", "--version")
    return _parser().parse_args(["tune", *arguments] if implied else arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autotune",
        description="Measures this host and chooses how to run a ternary (BitNet) language model on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autotune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tune = commands.add_parser("tune", help="measure, choose and save (the default command)")
    _add_model(tune)
    _add_workload(tune)
    _add_limits(tune)
    _add_budget(tune)
    tune.add_argument(
        "--quick", action="store_true", help=f"time fewer points, in {QUICK_BUDGET_S:g} seconds, and run nothing"
    )
    tune.add_argument("--no-confirm", action="store_true", help="predict only: run no configuration")
    tune.add_argument(
        "--storage",
        metavar="URL",
        help="keep the search among runs in this database (sqlite:///FILE, postgresql://...): Optuna's dashboard can "
        "open it, and a search that was stopped goes on",
    )
    tune.add_argument("--force", action="store_true", help="measure again even if a result is saved")
    tune.add_argument(
        "--replay", metavar="FILE", help="decide for the host that `autotune host --record` wrote there; saves nothing"
    )
    tune.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(tune)
    tune.set_defaults(command="tune")

    retune = commands.add_parser("retune", help="choose again from saved measurements, without measuring")
    _add_model(retune)
    _add_workload(retune)
    _add_limits(retune)
    _add_json(retune)
    retune.set_defaults(command="retune")

    show = commands.add_parser("show", help="print the saved result")
    _add_model(show)
    _add_workload(show)
    _add_json(show)
    show.set_defaults(command="show")

    explain = commands.add_parser(
        "explain", help="why the saved result is what it is: reasons, and the curve over GPU layers"
    )
    _add_model(explain)
    _add_workload(explain)
    _add_json(explain)
    explain.set_defaults(command="explain")

    verify = commands.add_parser(
        "verify", help="tune, run all configurations, and say how far the tuned one is from the best"
    )
    _add_model(verify)
    _add_workload(verify)
    _add_limits(verify)
    _add_budget(verify)
    verify.add_argument("--grid", type=_whole, metavar="N", help="run at most so many parts of configurations")
    verify.add_argument("--repeats", type=_whole, default=3, metavar="N", help="rounds of runs (default 3)")
    verify.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(verify)
    verify.set_defaults(command="verify")

    model = commands.add_parser("model", help="print what a model is: shapes, memory, work, hints")
    _add_model(model)
    _add_json(model)
    model.set_defaults(command="model")

    host = commands.add_parser("host", help="print what this host is: CPU, memory, GPUs, limits, kernels, tier")
    host.add_argument("--no-measure", action="store_true", help="leave the tier out, which takes seconds to measure")
    host.add_argument("--record", metavar="FILE", help="time models here and write host and measurements for --replay")
    host.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help=f"with --record: a model to time, may be given several times (default {RECORDED_MODEL})",
    )
    host.add_argument(
        "--budget",
        type=_number,
        metavar="SECONDS",
        help=f"with --record: time per model (default {RECORD_BUDGET_S:g}, and {GPU_BUDGET_S:g} more with a GPU)",
    )
    host.add_argument("--quiet", action="store_true", help="with --record: show no progress")
    _add_json(host)
    host.set_defaults(command="host")

    schema = commands.add_parser("schema", help="print the JSON Schema of a saved result")
    schema.set_defaults(command="schema")

    _add_cache(commands.add_parser("cache", help="list, find, forget, export or import saved results"))
    return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="list saved results")
    _add_json(listing)
    listing.set_defaults(command="cache list")

    path = actions.add_parser("path", help="print the folders that are read, the first one first")
    path.set_defaults(command="cache path")

    forget = actions.add_parser("forget", help="delete saved results")
    forget.add_argument("model", nargs="?", metavar="MODEL", help="model file or preset")
    forget.add_argument("--all", action="store_true", help="delete all, of all hosts and models")
    forget.add_argument("--workload", help="only this workload's")
    forget.add_argument("--format", help="the weight format it was tuned with, if it was given")
    forget.set_defaults(command="cache forget")

    export = actions.add_parser("export", help="write a saved result to a file")
    _add_model(export)
    export.add_argument("file", metavar="FILE")
    _add_workload(export)
    export.set_defaults(command="cache export")

    importing = actions.add_parser("import", help="save a result from a file that `export` wrote")
    importing.add_argument("file", metavar="FILE")
    importing.set_defaults(command="cache import")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a config.json, a GGUF file, or the name of a preset")
    parser.add_argument(
        "--format",
        help="weight format, to say or override the model's own (for example I2_S; IQ2_S is lossy on ternary weights); "
        "auto times all that suit a ternary model and this host, and chooses",
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", default="server", help="chat, server (default) or offline")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", type=_whole, metavar="TOKENS", help="prompt tokens per request")
    parser.add_argument("--output", type=_whole, metavar="TOKENS", help="output tokens per request")
    parser.add_argument("--context", type=_whole, metavar="TOKENS", help="KV-cache slots reserved per sequence")
    parser.add_argument("--max-batch", type=_whole, metavar="N", help="largest number of sequences decoded together")
    parser.add_argument("--max-tpot-ms", type=_number, metavar="MS", help="longest time per output token")
    parser.add_argument("--max-ttft-ms", type=_number, metavar="MS", help="longest time to the first token")
    parser.add_argument(
        "--kernel", metavar="NAME", help="time this kernel alone (numpy, native, amx) and not the fastest of all"
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=_number,
        metavar="SECONDS",
        help=f"time for measuring (default {DEFAULT_BUDGET_S:g} for kernels, {GPU_BUDGET_S:g} more with a GPU, "
        f"and {RUN_BUDGET_S:g} for runs; a time given here is shared out alike)",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
