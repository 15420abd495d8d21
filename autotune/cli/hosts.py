"""Commands about what there is: model, host, and the schema of what is saved."""

from __future__ import annotations

import sys

from autotune import errors
from autotune.cli.arguments import add_json, add_model, number
from autotune.cli.output import print_record
from autotune.options import AUTO, GPU_BUDGET_S, RECORD_BUDGET_S, RECORDED_MODEL, split_budget

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add them to the parser."""
    model = commands.add_parser("model", help="print what a model is: shapes, memory, work, hints")
    add_model(model)
    add_json(model)
    model.set_defaults(run=_model)

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
        type=number,
        metavar="SECONDS",
        help=f"with --record: time per model (default {RECORD_BUDGET_S:g}, and {GPU_BUDGET_S:g} more with a GPU)",
    )
    host.add_argument("--quiet", action="store_true", help="with --record: show no progress")
    add_json(host)
    host.set_defaults(run=_host)

    schema = commands.add_parser("schema", help="print the JSON Schema of a saved result")
    schema.set_defaults(run=_schema)


def _model(args: argparse.Namespace) -> int:
    from autotune.model.analyse import analyse

    if args.format == AUTO:
        raise errors.UsageError("--format auto compares formats by timing them: `autotune model` needs the name of one")
    model = analyse(args.model, args.format)
    if args.json:
        print_record(model)
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

        print_record({"host": host, "tier": tier, "kernels": to_json(kernels)})
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
