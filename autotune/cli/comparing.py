"""`compare`: whether one version is slower than another. `sample`: the side of a comparison that `compare` starts."""

from __future__ import annotations

import sys

from autotune import errors
from autotune.cli.arguments import add_json, add_model, add_workload, number
from autotune.cli.output import print_record

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands
    from autotune.compare.verdict import Comparison

_BUDGET_S = 40.0
_MARGIN = 0.03
_RUNNABLE = "a Python executable, the folder of a virtual environment or of a checkout of autotune"
_RECORDED = "a record, a folder of records, or the first digits of a commit that has some"


def add(commands: Commands) -> None:
    """Add them to the parser."""
    compare = commands.add_parser(
        "compare",
        help="say whether HEAD is slower than BASE, by running both in turns or from records; exit code 11 if it is",
        description=f"BASE and HEAD are both {_RUNNABLE}; or both {_RECORDED}.",
    )
    compare.add_argument("base", metavar="BASE", help="what to compare with")
    compare.add_argument("head", metavar="HEAD", help="what may have become slower")
    compare.add_argument(
        "--model", metavar="MODEL", help="what both run: a model file or a preset; of records a name or a pattern"
    )
    compare.add_argument("--format", help="weight format, to say or override the model's own")
    compare.add_argument("--workload", help="chat, server (default) or offline; of records the default is all")
    compare.add_argument(
        "--configuration-from",
        choices=("base", "head", "own"),
        help="whose configuration both run, or each its own (default: base; head where only that has a saved result)",
    )
    compare.add_argument(
        "--results", default="results", metavar="FOLDER", help="where a commit's records are (default results)"
    )
    compare.add_argument(
        "--margin",
        type=number,
        default=_MARGIN,
        metavar="SHARE",
        help=f"changes of time up to this share count as none (default {_MARGIN:g})",
    )
    compare.add_argument(
        "--budget", type=number, metavar="SECONDS", help=f"time for running in turns (default {_BUDGET_S:g})"
    )
    compare.add_argument("--markdown", action="store_true", help="print Markdown, for a job's summary")
    add_json(compare)
    compare.add_argument("--quiet", action="store_true", help="show no progress")
    compare.set_defaults(run=_compare)

    sample = commands.add_parser(
        "sample", help="run configurations as lines of JSON on standard input ask for it: a side of `compare`"
    )
    add_model(sample)
    add_workload(sample)
    sample.set_defaults(run=_sample)


def _compare(args: argparse.Namespace) -> int:
    from autotune.compare import report

    found = _compared(args)
    if args.json:
        print_record(found)
    else:
        sys.stdout.write(report.markdown(found) if args.markdown else report.table(found))
    if found.verdict == "worse":
        raise errors.RegressionError(report.regression(found))
    return 0


def _compared(args: argparse.Namespace) -> Comparison:
    from autotune.compare.program import find_program

    if args.json and args.markdown:
        raise errors.UsageError("--json and --markdown both say what to print: leave one of them out")
    if not 0 < args.margin < 1:
        raise errors.UsageError(f"--margin must be more than 0 and less than 1, got {args.margin:g}")
    names = f"BASE ({args.base})", f"HEAD ({args.head})"
    base, head = find_program("BASE", args.base), find_program("HEAD", args.head)
    if base is not None and head is not None:
        if args.model is None:
            raise errors.UsageError("--model is needed: BASE and HEAD are both run, and it says with what")
        from autotune.compare.interleave import Wish, compare_programs
        from autotune.model.source import digest, resolve
        from autotune.progress import shown
        from autotune.store.entry import check_workload

        wish = Wish(
            args.model,
            args.workload or "server",
            args.format,
            args.configuration_from,
            args.margin,
            _BUDGET_S if args.budget is None else args.budget,
        )
        check_workload(wish.workload)
        digest(resolve(args.model), args.format)  # a model that can't be read is neither side's fault
        with shown(quiet=args.quiet) as display:
            return compare_programs(base, head, wish, progress=display.measuring)
    from autotune.compare.recorded import compare_records, find_records

    records = [
        find_records(side, given, args.results, model=args.model, workload=args.workload, weight_format=args.format)
        for side, given, program in (("BASE", args.base, base), ("HEAD", args.head, head))
        if program is None
    ]
    if len(records) == 1:
        can, other = names if base is not None else names[::-1]
        raise errors.UsageError(
            f"{can} can be run, and {other} is records: name two versions that can be run, or records of both "
            "(`autotune record` makes them)"
        )
    for option, asked in (("--configuration-from", args.configuration_from), ("--budget", args.budget)):
        if asked is not None:
            raise errors.UsageError(f"{option} is about running in turns, and records are compared: leave it out")
    return compare_records(names, records[0], records[1], args.margin)


def _sample(args: argparse.Namespace) -> int:
    from autotune.compare.sampling import serve

    serve(args.model, args.workload, args.format)
    return 0
