"""`record`: tune and keep a record. `history`: the records as one table."""

from __future__ import annotations

import os
import sys

from autotune import errors
from autotune.cli.arguments import add_json, add_measuring, add_question, options_of, whole
from autotune.cli.output import print_document, print_record

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from datetime import datetime

    from autotune.cli.arguments import Commands
    from autotune.history.store import Stored

_RESULTS = "results"
_LISTED = 50
"""Records that a person is shown unless `--last` says how many."""


def add(commands: Commands) -> None:
    """Add them to the parser."""
    record = commands.add_parser("record", help="tune anew and add a record of it to a folder, for CI jobs")
    add_question(record)
    add_measuring(record)
    record.add_argument(
        "--cached", action="store_true", help="take what is saved for this host, if it answers; of no commit"
    )
    add_results(record)
    record.add_argument(
        "--tag", action="append", type=_tag, default=[], metavar="KEY=VALUE", help="to remember; may be given again"
    )
    record.add_argument("--quiet", action="store_true", help="show no progress and no figures")
    add_json(record)
    record.set_defaults(run=_record)

    history = commands.add_parser("history", help="list the records in a folder, or write them as one table")
    add_results(history)
    history.add_argument("--model", metavar="NAME", help="only this model's; a pattern such as 'bitnet*' will do")
    history.add_argument("--workload", help="only of chat, server or offline")
    history.add_argument("--hardware-class", metavar="CLASS", help="only of such hosts; a pattern will do")
    history.add_argument("--commit", metavar="HEX", help="only of the commit that begins so")
    history.add_argument("--since", type=_begin, metavar="TIME", help="from this date or time on (ISO 8601, UTC)")
    history.add_argument("--until", type=_end, metavar="TIME", help="up to this date, or before this time")
    history.add_argument(
        "--tag", action="append", type=_tag, default=[], metavar="KEY=VALUE", help="only with this tag"
    )
    history.add_argument("--last", type=whole, metavar="N", help="only the latest N")
    history.add_argument("--csv", metavar="FILE", help="write them as CSV; - is standard output")
    history.add_argument("--parquet", metavar="FILE", help="write them as Parquet")
    add_json(history)
    history.set_defaults(run=_history)


def add_results(parser: argparse.ArgumentParser) -> None:
    """The folder of records."""
    parser.add_argument(
        "--results", default=_RESULTS, metavar="FOLDER", help=f"folder of the records (default {_RESULTS})"
    )


def _record(args: argparse.Namespace) -> int:
    """Tune as `tune` does, but measure even where a result is saved: a record is of today's code on today's host."""
    from datetime import UTC, datetime

    from autotune.history.condense import history_record
    from autotune.history.listing import figures
    from autotune.history.store import check_writable, encode, write
    from autotune.history.surroundings import Checkout, find_checkout, find_job
    from autotune.pipeline import tune
    from autotune.progress import shown

    tags = _tags(args)
    check_writable(args.results)
    checkout, started = find_checkout(), datetime.now(UTC).replace(microsecond=0)
    with shown(quiet=args.quiet) as display:
        result = tune(
            args.model,
            options_of(args),
            budget_s=args.budget,
            quick=args.quick,
            force=not args.cached,
            progress=display.progress,
            running=display.running,
        )
    if datetime.fromisoformat(result.measured_at) < started:
        checkout = Checkout()  # nobody knows which commit a saved result was measured at
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = history_record(result, recorded_at=now, checkout=checkout, job=find_job(), tags=tags)
    path = write(args.results, record)
    if not args.quiet:
        print(f"{record.model_name}, {record.workload.name}: {figures(record)}", file=sys.stderr)
    print_document(encode(record) if args.json else os.fsencode(path) + b"\n")
    return 0


def _history(args: argparse.Namespace) -> int:
    from autotune.history.select import Wanted, select
    from autotune.history.store import read_tree

    if args.csv == "-" and args.json:
        raise errors.UsageError("--csv - and --json both print on standard output: leave one of them out")
    if args.parquet == "-":
        raise errors.UsageError("--parquet needs the name of a file: only --csv can be printed")
    files = [os.path.realpath(name) for name in (args.csv, args.parquet) if name is not None]
    if len(set(files)) < len(files):
        raise errors.UsageError(f"--csv and --parquet both name {args.csv}: name two files")
    wanted = Wanted(
        model=args.model,
        workload=args.workload,
        hardware_class=args.hardware_class,
        commit=args.commit,
        since=args.since,
        until=args.until,
        tags=_tags(args),
        last=args.last,
    )
    wanted.check()
    found = select(read_tree(args.results), wanted)
    if not found:
        if wanted == Wanted(last=args.last):
            raise errors.ResultNotFoundError(
                f"{args.results} holds no record: `autotune record MODEL --results {args.results}` adds one"
            )
        raise errors.ResultNotFoundError(f"{args.results} holds no record that matches all of what was asked for")
    if args.csv is not None or args.parquet is not None:
        _write_tables(args, found)
    if args.json:
        from autotune.history.table import rows

        print_record(rows(found))
    elif args.csv is None and args.parquet is None:
        _list(found, every=args.last is not None)
    return 0


def _write_tables(args: argparse.Namespace, found: Sequence[Stored]) -> None:
    """Write the files asked for: all are made before the first is written."""
    from autotune.history.table import to_csv, to_parquet
    from autotune.store.files import write_output

    documents = [
        (name, make(found)) for name, make in ((args.parquet, to_parquet), (args.csv, to_csv)) if name is not None
    ]
    for name, document in documents:
        if name == "-" and name == args.csv:
            print_document(document)
        else:
            write_output(name, document, "the table", keep=(one.path for one in found))
            print(f"wrote {name}", file=sys.stderr)


def _list(found: Sequence[Stored], *, every: bool) -> None:
    from autotune.history.listing import listing

    shown = found if every else found[-_LISTED:]
    width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    text = listing(shown, width)
    print_document(text.encode(sys.stdout.encoding, errors="replace"))
    if len(shown) < len(found):
        print(
            f"autotune: these are the latest {len(shown)} of {len(found):,} records; --last N lists more, --csv all",
            file=sys.stderr,
        )


def _tags(args: argparse.Namespace) -> dict[str, str]:
    tags: dict[str, str] = {}
    for key, value in args.tag:
        if key in tags:
            raise errors.UsageError(f"--tag {key} was given twice: a record has one value for it")
        tags[key] = value
    return tags


def _tag(text: str) -> tuple[str, str]:
    """A tag, or a message that argparse prints."""
    import argparse

    key, separator, value = text.partition("=")
    if not (separator and key.isprintable() and value.isprintable() and key.strip()):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE on one line, got {text!r}")
    return key, value


def _begin(text: str) -> datetime:
    return _moment(text, ends=False)


def _end(text: str) -> datetime:
    return _moment(text, ends=True)


def _moment(text: str, *, ends: bool) -> datetime:
    """A time, or a message that argparse prints."""
    import argparse

    from autotune.history.select import parse_moment

    try:
        return parse_moment(text, ends=ends)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2026-01-31 or a time such as 2026-01-31T12:00, got {text!r}"
        ) from None
