"""The command line: human text on standard error, one JSON document on standard output with ``--json``.

Everything but the parser is imported when a command needs it: a cached answer must not pay for the tuner.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings

from autotune import __version__, errors
from autotune.options import (
    DEFAULT_BUDGET_S,
    QUICK_BUDGET_S,
    Options,
    check_budget,
    counted_budget_s,
    tune_command,
)

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from autotune.records import Result
    from autotune.store.entry import Entry

EXIT_CODES = {
    errors.UsageError: 2,
    errors.ModelError: 3,
    errors.MemoryLimitError: 4,
    errors.ConstraintError: 5,
    errors.BudgetError: 6,
    errors.BenchmarkError: 7,
    errors.StoreError: 8,
    errors.ResultNotFoundError: 9,
}
EXIT_SYSTEM = 1
EXIT_INTERRUPTED = 130

_EPILOG = """\
exit codes:
  0  done                                  6  the time budget is too small
  1  the output can't be written, or       7  the benchmark failed
     the system refused something else     8  the cache could not be written or read (a result is still printed)
  2  wrong usage                           9  nothing is saved for this model on this host
  3  the model file is missing or bad    130  stopped by Ctrl-C
  4  the model does not fit the memory
  5  no configuration keeps the TPOT or TTFT limit

`autotune MODEL` is short for `autotune tune MODEL`.
"""
_COMMANDS = ("tune", "show", "retune", "model", "host", "schema", "cache")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_closed_streams()
    warnings.showwarning = _show_warning
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            # Not left to the interpreter's exit, where a full disk or a closed pipe can't be dealt with.
            sys.stdout.flush()
    except errors.AutotuneError as error:
        print(f"autotune: {error}", file=sys.stderr)
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses Ctrl-C twice gets one sentence as well
        print("autotune: stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        # What is left in the buffer must not be written again at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            print(f"autotune: the system refused: {error}", file=sys.stderr)
        return EXIT_SYSTEM


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        arguments.insert(0, "tune")
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def _tune(args: argparse.Namespace) -> int:
    from autotune.loader import find_answer, load_result

    options, budget_s = _options(args), check_budget(args.budget, quick=args.quick)
    entry = None if args.force else find_answer(args.model, options, counted_budget_s(budget_s, quick=args.quick))
    if entry is not None and args.json:
        _print_document(entry.raw)
        return 0
    saved = None if entry is None else load_result(args.model, options.workload, options.format)
    if entry is not None and saved is not None:
        _print_summary(saved, f"{entry.path} (answered from there; --force measures again)")
        return 0
    from autotune.pipeline import obtain
    from autotune.progress import shown

    with shown(quiet=args.quiet) as progress:
        result = obtain(args.model, options, budget_s=budget_s, quick=args.quick, force=args.force, progress=progress)
    return _finish(result, options, as_json=args.json)


def _retune(args: argparse.Namespace) -> int:
    from autotune.pipeline import retune

    options = _options(args)
    return _finish(retune(args.model, options), options, as_json=args.json)


def _show(args: argparse.Namespace) -> int:
    from autotune.loader import load_result

    entry = _saved_entry(args)
    if args.json:
        _print_document(entry.raw)
        return 0
    result = load_result(args.model, args.workload, args.format)
    if result is None:  # it is of another shape than this version's: set aside by now
        raise _nothing_saved(args)
    _print_summary(result, entry.path)
    return 0


def _model(args: argparse.Namespace) -> int:
    from autotune.model.analyse import analyse

    model = analyse(args.model, args.format)
    if args.json:
        _print_record(model)
    else:
        from autotune.model.describe import describe
        from autotune.summary import show

        show(describe(model))
    return 0


def _host(args: argparse.Namespace) -> int:
    from autotune.host.detect import detect

    host, tier = detect(), None
    if not args.no_measure:
        from autotune.pipeline import measure_tier

        tier = measure_tier(host)
    if args.json:
        _print_record({"host": host, "tier": tier})
    else:
        from autotune.host.describe import describe
        from autotune.summary import show

        show(describe(host, tier))
    return 0


def _schema(_: argparse.Namespace) -> int:
    from autotune.store.schema import json_schema_text

    sys.stdout.write(json_schema_text())
    return 0


def _cache_list(args: argparse.Namespace) -> int:
    from autotune.store.manage import list_entries
    from autotune.summary import show

    stored = list(list_entries())
    if args.json:
        _print_record(
            [
                {
                    "path": os.fsencode(one.entry.path).decode(errors="replace"),
                    "host": one.result.host.label,
                    "host_fingerprint": one.entry.key.host,
                    "model": one.result.model.name,
                    "workload": one.entry.key.workload,
                    "created_at": one.result.created_at,
                    "device_config": one.result.device_config,
                }
                for one in stored
            ]
        )
    else:
        show(
            (f"{one.result.model.name}, {one.entry.key.workload}", f"{one.result.created_at} {one.entry.path}")
            for one in stored
        )
        if not stored:
            print("autotune: nothing is saved", file=sys.stderr)
    return 0


def _cache_path(_: argparse.Namespace) -> int:
    from autotune.store.paths import layers

    _print_document(b"".join(os.fsencode(layer) + b"\n" for layer in layers()))
    return 0


def _cache_forget(args: argparse.Namespace) -> int:
    from autotune.model.source import digest, resolve
    from autotune.store.entry import WORKLOADS
    from autotune.store.manage import forget

    if args.all == (args.model is not None):
        raise errors.UsageError("cache forget expects either a MODEL or --all")
    if args.all and args.format is not None:
        raise errors.UsageError("cache forget --all takes no --format: a format goes with a MODEL")
    if args.workload not in (None, *WORKLOADS):
        raise errors.UsageError(f"the workload must be one of {', '.join(WORKLOADS)}, got {args.workload!r}")
    model_digest = None if args.all else digest(resolve(args.model), args.format)
    forgotten = forget(model_digest, args.workload)
    for path in forgotten:
        print(f"forgot {path}", file=sys.stderr)
    if not forgotten:
        raise errors.ResultNotFoundError(f"nothing is saved for {'any model' if args.all else args.model}")
    return 0


def _cache_export(args: argparse.Namespace) -> int:
    from autotune.store.manage import export

    key = _saved_entry(args).key
    export(key.host, key.model, key.workload, args.file)
    print(f"wrote {args.file}", file=sys.stderr)
    return 0


def _cache_import(args: argparse.Namespace) -> int:
    from autotune.store.manage import import_

    print(f"saved {import_(args.file)}", file=sys.stderr)
    return 0


def _finish(result: Result, options: Options, *, as_json: bool) -> int:
    """Save a new result and print it; it is printed even where it can't be saved."""
    from autotune.pipeline import request
    from autotune.store import cache

    key, document = cache.document(result, request(options, result))
    saved_in, code = None, 0
    try:
        saved_in = cache.store(key, document)
    except errors.StoreError as error:
        print(f"autotune: warning: {error}", file=sys.stderr)
        code = EXIT_CODES[errors.StoreError]
    if as_json:
        _print_document(document)
    else:
        _print_summary(result, saved_in)
    return code


def _saved_entry(args: argparse.Namespace) -> Entry:
    """The entry that a command names.

    Raises:
        ResultNotFoundError: There is none.
    """
    from autotune.loader import find_entry

    entry = find_entry(args.model, args.workload, args.format)
    if entry is None:
        raise _nothing_saved(args)
    return entry


def _nothing_saved(args: argparse.Namespace) -> errors.ResultNotFoundError:
    return errors.ResultNotFoundError(
        f"nothing is saved for {args.model} and workload {args.workload} on this host: "
        f"run `{tune_command(args.model, args.workload, args.format)}` first"
    )


def _options(args: argparse.Namespace) -> Options:
    return Options(**{name: getattr(args, name) for name in Options._fields})


def _print_document(document: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(document)
    sys.stdout.buffer.flush()


def _print_record(record: object) -> None:
    import msgspec

    _print_document(msgspec.json.encode(record) + b"\n")


def _print_summary(result: Result, saved_in: str | None) -> None:
    from autotune.summary import show, summarize

    show(summarize(result, saved_in))


def _open_closed_streams() -> None:
    """A standard stream that was closed is None to Python, and its number would go to the next file opened."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (light; open until the end)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"autotune: warning: {message}", file=sys.stderr)


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
    tune.add_argument(
        "--budget", type=_number, metavar="SECONDS", help=f"time for the benchmark (default {DEFAULT_BUDGET_S:g})"
    )
    tune.add_argument("--quick", action="store_true", help=f"time fewer points, in {QUICK_BUDGET_S:g} seconds")
    tune.add_argument("--force", action="store_true", help="measure again even if a result is saved")
    tune.add_argument("--quiet", action="store_true", help="show no progress")
    _add_json(tune)
    tune.set_defaults(command=_tune)

    retune = commands.add_parser("retune", help="choose again from saved measurements, without measuring")
    _add_model(retune)
    _add_workload(retune)
    _add_limits(retune)
    _add_json(retune)
    retune.set_defaults(command=_retune)

    show = commands.add_parser("show", help="print the saved result")
    _add_model(show)
    _add_workload(show)
    _add_json(show)
    show.set_defaults(command=_show)

    model = commands.add_parser("model", help="print what a model is: shapes, memory, work, hints")
    _add_model(model)
    _add_json(model)
    model.set_defaults(command=_model)

    host = commands.add_parser("host", help="print what this host is: CPU, memory, GPUs, limits, tier")
    host.add_argument("--no-measure", action="store_true", help="leave the tier out, which takes 2 seconds to measure")
    _add_json(host)
    host.set_defaults(command=_host)

    schema = commands.add_parser("schema", help="print the JSON Schema of a saved result")
    schema.set_defaults(command=_schema)

    _add_cache(commands.add_parser("cache", help="list, find, forget, export or import saved results"))
    return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="list saved results")
    _add_json(listing)
    listing.set_defaults(command=_cache_list)

    path = actions.add_parser("path", help="print the folders that are read, the first one first")
    path.set_defaults(command=_cache_path)

    forget = actions.add_parser("forget", help="delete saved results")
    forget.add_argument("model", nargs="?", metavar="MODEL", help="model file or preset")
    forget.add_argument("--all", action="store_true", help="delete all, of all hosts and models")
    forget.add_argument("--workload", help="only this workload's")
    forget.add_argument("--format", help="the weight format it was tuned with, if it was given")
    forget.set_defaults(command=_cache_forget)

    export = actions.add_parser("export", help="write a saved result to a file")
    _add_model(export)
    export.add_argument("file", metavar="FILE")
    _add_workload(export)
    export.set_defaults(command=_cache_export)

    importing = actions.add_parser("import", help="save a result from a file that `export` wrote")
    importing.add_argument("file", metavar="FILE")
    importing.set_defaults(command=_cache_import)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a config.json, a GGUF file, or the name of a preset")
    parser.add_argument("--format", help="weight format, to say or override the model's own (for example I2_S)")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", default="server", help="chat, server (default) or offline")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", type=_whole, metavar="TOKENS", help="prompt tokens per request")
    parser.add_argument("--output", type=_whole, metavar="TOKENS", help="output tokens per request")
    parser.add_argument("--context", type=_whole, metavar="TOKENS", help="KV-cache slots reserved per sequence")
    parser.add_argument("--max-batch", type=_whole, metavar="N", help="largest number of sequences decoded together")
    parser.add_argument("--max-tpot-ms", type=_number, metavar="MS", help="longest time per output token")
    parser.add_argument("--max-ttft-ms", type=_number, metavar="MS", help="longest time to the first token")


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
