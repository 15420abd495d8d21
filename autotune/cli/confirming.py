"""`autotune confirm`: a short run that tells whether a saved result's figures hold on this host."""

from __future__ import annotations

import sys

from autotune import errors
from autotune.cli.arguments import add_json, number
from autotune.cli.output import print_record
from autotune.cli.saved import add_saved, open_saved
from autotune.options import remeasure_command, split_budget

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands
    from autotune.records import Result
    from autotune.store.entry import Entry

_BUDGET_S = 5.0


def add(commands: Commands) -> None:
    """Add it to the parser."""
    confirm = commands.add_parser("confirm", help="run a saved result's configuration shortly: do its figures hold?")
    add_saved(confirm)
    confirm.add_argument(
        "--budget",
        type=number,
        default=_BUDGET_S,
        metavar="SECONDS",
        help=f"time for all of it (default {_BUDGET_S:g}); a prompt is run only where it fits in",
    )
    add_json(confirm)
    confirm.set_defaults(run=_confirm)


def _confirm(args: argparse.Namespace) -> int:
    from autotune.checked import lines
    from autotune.cli.run import EXIT_CODES
    from autotune.recheck import recheck
    from autotune.summary import show

    split_budget(args.budget, confirm=False)
    entry, saved = open_saved(args)
    result, code = recheck(saved, budget_s=args.budget), 0
    if args.json:
        print_record(result.check)
    else:
        show(lines(result))
    named_file = entry.path == args.model
    if not named_file:
        try:
            _keep(entry, result)
        except errors.StoreError as error:
            print(f"autotune: warning: {error}", file=sys.stderr)
            code = EXIT_CODES[errors.StoreError]
    if result.check is not None and not result.check.holds:
        raise errors.RegressionError(
            _worse(result, None if named_file else remeasure_command(args.model, entry.request))
        )
    return code


def _keep(entry: Entry, result: Result) -> None:
    """Save a result with its check, unless something else was saved in its place while it was run.

    Raises:
        StoreError: It can't be saved.
    """
    from autotune.store import cache

    now = cache.read(entry.key.host, entry.key.model, entry.key.workload)
    if now is None or now.raw != entry.raw:
        raise errors.StoreError("the check was not saved: what it is about was replaced meanwhile")
    cache.write(result, entry.request)


def _worse(result: Result, command: str | None) -> str:
    from autotune.checked import compared

    what = f"{result.model.name}, {result.workload.name}: {compared(result)}"
    return f"{what}: tune the model anew" if command is None else f"{what}: tune anew with `{command}`"
