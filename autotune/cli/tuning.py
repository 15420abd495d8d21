"""Commands that decide: tune, retune, verify."""

from __future__ import annotations

import sys

from autotune import errors
from autotune.cli.arguments import add_budget, add_json, add_measuring, add_question, options_of, whole
from autotune.cli.output import print_document, print_record, print_summary
from autotune.cli.saved import warn_of_shortage
from autotune.options import Options, counted_budget_s, split_budget

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands
    from autotune.records import Result


def add(commands: Commands) -> None:
    """Add them to the parser."""
    tune = commands.add_parser("tune", help="measure, choose and save (the default command)")
    add_question(tune)
    add_measuring(tune)
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
    add_json(tune)
    tune.set_defaults(run=_tune)

    retune = commands.add_parser("retune", help="choose again from saved measurements, without measuring")
    add_question(retune)
    add_json(retune)
    retune.set_defaults(run=_retune)

    verify = commands.add_parser(
        "verify", help="tune, run all configurations, and say how far the tuned one is from the best"
    )
    add_question(verify)
    add_budget(verify)
    verify.add_argument("--grid", type=whole, metavar="N", help="run at most so many parts of configurations")
    verify.add_argument("--repeats", type=whole, default=3, metavar="N", help="rounds of runs (default 3)")
    verify.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(verify)
    verify.set_defaults(run=_verify)


def _tune(args: argparse.Namespace) -> int:
    if args.replay is not None:
        return _replay(args)
    from autotune.loader import find_answer, load_result

    options = options_of(args)
    if args.storage is not None and not options.confirm:
        option = "--quick" if args.quick else "--no-confirm"
        raise errors.UsageError(f"--storage keeps what is run, and {option} runs nothing: leave one of them out")
    budget = split_budget(args.budget, quick=args.quick, confirm=options.confirm)
    least_s = counted_budget_s(budget.benchmark_s, quick=args.quick)
    entry = None if args.force else find_answer(args.model, options, least_s)
    if entry is not None and args.json:
        print_document(entry.raw)
        return 0
    saved = None if entry is None else load_result(args.model, options.workload, options.format)
    if entry is not None and saved is not None:
        warn_of_shortage(entry)
        print_summary(saved, f"{entry.path} (answered from there; --force measures again)")
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
    options = options_of(args)._replace(confirm=False)
    result = replay(recording, args.model, options)
    if args.json:
        _, raw = document(result, request(options, result))
        print_document(raw)
        return 0
    from autotune.explanation import curve
    from autotune.summary import show, summarize

    show(
        [*summarize(result, None), ("", ""), *curve(result), ("", ""), ("replayed", f"{args.replay}; nothing is saved")]
    )
    return 0


def _retune(args: argparse.Namespace) -> int:
    from autotune.pipeline import retune

    options = options_of(args)
    return _finish(retune(args.model, options), options, as_json=args.json)


def _verify(args: argparse.Namespace) -> int:
    from autotune.progress import shown
    from autotune.verify.report import show
    from autotune.verify.run import verify

    with shown(quiet=args.quiet) as display:
        found = verify(
            args.model,
            options_of(args),
            budget_s=args.budget,
            limit=args.grid,
            repeats=args.repeats,
            progress=display.progress,
            running=display.running,
            measuring=display.measuring,
        )
    if args.json:
        print_record(found)
    else:
        show(found)
    return 0


def _finish(result: Result, options: Options, *, as_json: bool) -> int:
    """Save a new result and print it; it is printed even where it can't be saved."""
    from autotune.cli.run import EXIT_CODES
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
        print_document(document)
    else:
        print_summary(result, saved_in)
    return code
