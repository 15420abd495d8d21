"""What the command line takes: arguments that commands share, and the table of exit codes that ``--help`` prints."""

from __future__ import annotations

import argparse

from autotune import __version__
from autotune.options import DEFAULT_BUDGET_S, GPU_BUDGET_S, QUICK_BUDGET_S, RUN_BUDGET_S, Options

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EPILOG = """\
exit codes:
  0  done                                  6  the time budget is too small
  1  the output can't be written, or       7  the benchmark failed
     the system refused something else     8  a file or the cache could not be written or read
  2  wrong usage                           9  nothing is saved for this model on this host
  3  the model file is missing or bad     10  no kernel for it, or not the one asked for, can run here
  4  the model does not fit the memory    11  something got worse (compare, confirm)
  5  no configuration keeps the TPOT or   12  this runtime can't express the configuration (export)
     TTFT limit                          130  stopped by Ctrl-C

`autotune MODEL` is short for `autotune tune MODEL`.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words after the program's name; ``run`` of the result is the command as a function of it.

    Without a command it is ``tune``. Exits with a message and code 2 where the words make no command, and with 0 after
    ``--help`` and ``--version``.
    """
    parser, commands = build_parser()
    implied = arguments and arguments[0] not in (*commands.choices, "-h", "--help", "--version")
    return parser.parse_args(["tune", *arguments] if implied else arguments)


def build_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser, and its commands by name in ``choices``."""
    from autotune.cli import (
        caches,
        comparing,
        confirming,
        explaining,
        exporting,
        histories,
        hosts,
        reporting,
        requirements,
        saved,
        tuning,
    )

    parser = argparse.ArgumentParser(
        prog="autotune",
        description="Measures this host and chooses how to run a ternary (BitNet) language model on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autotune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    answers = tuning, saved, explaining, reporting, exporting
    for group in (*answers, confirming, histories, comparing, hosts, requirements, caches):
        group.add(commands)
    return parser, commands


def options_of(args: argparse.Namespace) -> Options:
    """The options that a command line gives."""
    named = {name: getattr(args, name) for name in Options._fields if name != "confirm"}
    quick, predict_only = getattr(args, "quick", False), getattr(args, "no_confirm", False)
    return Options(**named, confirm=not (quick or predict_only))


def add_model(parser: argparse.ArgumentParser, *, or_file: bool = False) -> None:
    """MODEL, and the weight format that it is meant in; ``or_file``: a file with a saved result will do."""
    what = "a config.json, a GGUF file, the name of a preset" + (", or a file with a saved result" if or_file else "")
    parser.add_argument("model", metavar="MODEL", help=what)
    parser.add_argument(
        "--format",
        help="weight format, to say or override the model's own (for example I2_S; IQ2_S is lossy on ternary weights); "
        "auto times all that suit a ternary model and this host, and chooses",
    )


def add_workload(parser: argparse.ArgumentParser) -> None:
    """The workload."""
    parser.add_argument("--workload", default="server", help="chat, server (default) or offline")


def add_question(parser: argparse.ArgumentParser) -> None:
    """All that a decision depends on: model, format, workload, lengths and limits."""
    add_model(parser)
    add_workload(parser)
    add_limits(parser)


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """How long, and how much, to measure for a decision."""
    add_budget(parser)
    parser.add_argument(
        "--quick", action="store_true", help=f"time fewer points, in {QUICK_BUDGET_S:g} seconds, and run nothing"
    )
    parser.add_argument("--no-confirm", action="store_true", help="predict only: run no configuration")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The workload's lengths and limits, and the kernel."""
    parser.add_argument("--prompt", type=whole, metavar="TOKENS", help="prompt tokens per request")
    parser.add_argument("--output", type=whole, metavar="TOKENS", help="output tokens per request")
    parser.add_argument("--context", type=whole, metavar="TOKENS", help="KV-cache slots reserved per sequence")
    parser.add_argument("--max-batch", type=whole, metavar="N", help="largest number of sequences decoded together")
    parser.add_argument("--max-tpot-ms", type=number, metavar="MS", help="longest time per output token")
    parser.add_argument("--max-ttft-ms", type=number, metavar="MS", help="longest time to the first token")
    parser.add_argument(
        "--kernel", metavar="NAME", help="time this kernel alone (numpy, native, amx) and not the fastest of all"
    )


def add_budget(parser: argparse.ArgumentParser) -> None:
    """The time for measuring."""
    parser.add_argument(
        "--budget",
        type=number,
        metavar="SECONDS",
        help=f"time for measuring (default {DEFAULT_BUDGET_S:g} for kernels, {GPU_BUDGET_S:g} more with a GPU, "
        f"and {RUN_BUDGET_S:g} for runs; a time given here is shared out alike)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """One JSON document as output."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def whole(text: str) -> int:
    """A whole number, or a message that argparse prints."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def number(text: str) -> float:
    """A number, or a message that argparse prints."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
