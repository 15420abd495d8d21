"""`report`: the saved result as one HTML page."""

# pathlib takes longer to import than this module

from __future__ import annotations

import sys

from autotune.cli.output import print_document
from autotune.cli.saved import add_saved, open_saved

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands

_STANDARD_OUTPUT = "-"


def add(commands: Commands) -> None:
    """Add it to the parser."""
    parser = commands.add_parser("report", help="write the saved result as one HTML page that stands alone")
    add_saved(parser)
    parser.add_argument(
        "-o",
        dest="file",
        metavar="FILE",
        default="report.html",
        help="where to write it, whole or not at all (default report.html); - prints it; a file that is there is "
        "replaced",
    )
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    entry, result = open_saved(args)
    from autotune.report.page import render

    # Commands in the page name the model; a file with a saved result is none.
    source = result.model.name if entry.path == args.model else args.model
    page = render(result, source, entry.request).encode(errors="replace")
    if args.file == _STANDARD_OUTPUT:
        print_document(page)
        return 0
    from autotune.store.files import write_output

    write_output(args.file, page, "the report", keep=(args.model,))
    print(f"wrote {args.file}", file=sys.stderr)
    return 0
