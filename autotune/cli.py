"""The command line: human text on standard error, one JSON document on standard output with ``--json``.

Everything but the parser is imported when a command needs it: a cached answer must not pay for the tuner.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings

from autotune import errors
from autotune.arguments import parse
from autotune.options import AUTO, RECORDED_MODEL, Options, counted_budget_s, split_budget, tune_command

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
    errors.KernelUnavailableError: 10,
}
EXIT_SYSTEM = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_closed_streams()
    warnings.showwarning = _show_warning
    try:
        try:
            args = parse(sys.argv[1:] if argv is None else argv)
            return _COMMANDS[args.command](args)
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


def _tune(args: argparse.Namespace) -> int:
    if args.replay is not None:
        return _replay(args)
    from autotune.loader import find_answer, load_result

    options = _options(args)
    if args.storage is not None and not options.confirm:
        option = "--quick" if args.quick else "--no-confirm"
        raise errors.UsageError(f"--storage keeps what is run, and {option} runs nothing: leave one of them out")
    budget = split_budget(args.budget, quick=args.quick, confirm=options.confirm)
    least_s = counted_budget_s(budget.benchmark_s, quick=args.quick)
    entry = None if args.force else find_answer(args.model, options, least_s)
    if entry is not None and args.json:
        _print_document(entry.raw)
        return 0
    saved = None if entry is None else load_result(args.model, options.workload, options.format)
    if entry is not None and saved is not None:
        _print_summary(saved, f"{entry.path} (answered from there; --force measures again)")
        return 0
    from autotune.pipeline import obtain
    from autotune.progress import shown

    with shown(quiet=args.quiet) as display:
        result = obtain(
            args.model,
            options,
            budget_s=args.budget,
            quick=args.quick,
            force=args.force,
            storage=args.storage,
            progress=display.progress,
            running=display.running,
        )
    return _finish(result, options, as_json=args.json)


def _replay(args: argparse.Namespace) -> int:
    """Decide for a recorded host, and save nothing: the answer is not this host's."""
    from autotune.pipeline import request
    from autotune.recorded import replay
    from autotune.store.cache import document
    from autotune.store.recording import read

    for option, given in (
        ("--force", args.force),
        ("--quick", args.quick),
        ("--budget", args.budget is not None),
        ("--no-confirm", args.no_confirm),
        ("--storage", args.storage is not None),
    ):
        if given:
            raise errors.UsageError(f"{option} is about timing, and --replay times nothing: leave one of them out")
    recording = read(args.replay)
    options = _options(args)._replace(confirm=False)
    result = replay(recording, args.model, options)
    if args.json:
        _, raw = document(result, request(options, result))
        _print_document(raw)
        return 0
    from autotune.explanation import curve
    from autotune.summary import show, summarize

    show(
        [*summarize(result, None), ("", ""), *curve(result), ("", ""), ("replayed", f"{args.replay}; nothing is saved")]
    )
    return 0


def _explain(args: argparse.Namespace) -> int:
    from autotune.loader import load_result

    result = load_result(args.model, args.workload, args.format)
    if result is None:
        raise _nothing_saved(args)
    from autotune.explanation import explain, to_json
    from autotune.summary import show

    if args.json:
        _print_record(to_json(result))
    else:
        show(explain(result))
    return 0


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


def _verify(args: argparse.Namespace) -> int:
    from autotune.progress import shown
    from autotune.verify.report import show
    from autotune.verify.run import verify

    with shown(quiet=args.quiet) as display:
        found = verify(
            args.model,
            _options(args),
            budget_s=args.budget,
            limit=args.grid,
            repeats=args.repeats,
            progress=display.progress,
            running=display.running,
            measuring=display.measuring,
        )
    if args.json:
        _print_record(found)
    else:
        show(found)
    return 0


def _model(args: argparse.Namespace) -> int:
    from autotune.model.analyse import analyse

    if args.format == AUTO:
        raise errors.UsageError("--format auto compares formats by timing them: `autotune model` needs the name of one")
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
    from autotune.host.kernels import find_kernels

    if args.record is not None:
        return _record(args)
    for option, given in (("--model", args.model), ("--budget", args.budget), ("--quiet", args.quiet)):
        if given:
            raise errors.UsageError(f"autotune host takes {option} only with --record FILE")
    host, tier = detect(), None
    kernels = find_kernels(host)
    if not args.no_measure:
        from autotune.pipeline import measure_tier

        tier = measure_tier(host)
    if args.json:
        from autotune.host.kernels import to_json

        _print_record({"host": host, "tier": tier, "kernels": to_json(kernels)})
    else:
        from autotune.host.describe import describe
        from autotune.summary import show

        show(describe(host, tier, kernels))
    return 0


def _record(args: argparse.Namespace) -> int:
    """Time models on this host and write what was measured to a file."""
    from autotune.progress import shown
    from autotune.recorded import record
    from autotune.store.recording import check_writable, write

    if args.json or args.no_measure:
        option = "--json" if args.json else "--no-measure"
        raise errors.UsageError(f"autotune host --record FILE writes what it measures: it takes no {option}")
    split_budget(args.budget, confirm=False)
    check_writable(args.record)
    with shown(quiet=args.quiet) as display:
        recording = record(args.model or [RECORDED_MODEL], budget_s=args.budget, progress=display.progress)
    write(args.record, recording)
    print(f"wrote {args.record}", file=sys.stderr)
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
    from autotune.store.entry import check_workload
    from autotune.store.manage import forget

    if args.all == (args.model is not None):
        raise errors.UsageError("cache forget expects either a MODEL or --all")
    if args.all and args.format is not None:
        raise errors.UsageError("cache forget --all takes no --format: a format goes with a MODEL")
    if args.workload is not None:
        check_workload(args.workload)
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
    named = {name: getattr(args, name) for name in Options._fields if name != "confirm"}
    quick, predict_only = getattr(args, "quick", False), getattr(args, "no_confirm", False)
    return Options(**named, confirm=not (quick or predict_only))


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


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "tune": _tune,
    "retune": _retune,
    "show": _show,
    "explain": _explain,
    "verify": _verify,
    "model": _model,
    "host": _host,
    "schema": _schema,
    "cache list": _cache_list,
    "cache path": _cache_path,
    "cache forget": _cache_forget,
    "cache export": _cache_export,
    "cache import": _cache_import,
}
