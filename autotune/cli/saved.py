"""Saved results as commands name them, by model or by file; and `show`."""

from __future__ import annotations

import os
import warnings

from autotune import errors
from autotune.cli.arguments import add_json, add_model
from autotune.cli.output import print_document, print_summary
from autotune.options import AUTO, tune_command

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands
    from autotune.records import Result
    from autotune.store.entry import Entry

_USUAL_WORKLOAD = "server"


def add(commands: Commands) -> None:
    """Add it to the parser."""
    show = commands.add_parser("show", help="print the saved result")
    add_saved(show)
    add_json(show)
    show.set_defaults(run=_show)


def add_saved(parser: argparse.ArgumentParser) -> None:
    """What names a saved result: `find_saved` and `open_saved` take it."""
    add_model(parser, or_file=True)
    parser.add_argument("--workload", help="chat, server (default) or offline")


def find_saved(args: argparse.Namespace) -> Entry:
    """The saved entry that a command names; its result is still in JSON.

    Raises:
        ResultNotFoundError: There is none for this model and host.
        StoreError: The file named holds none that can be read.
        UsageError: It holds one of another workload than asked for.
        ModelError: The model can't be read.
    """
    if _is_result(args.model):
        return _read(args)
    from autotune.loader import find_entry

    entry = find_entry(args.model, args.workload or _USUAL_WORKLOAD, args.format)
    if entry is None:
        raise _nothing_saved(args)
    return entry


def open_saved(args: argparse.Namespace) -> tuple[Entry, Result]:
    """As `find_saved`, with the result as records; warns where this host lacks the memory for it by now."""
    entry = find_saved(args)
    from autotune.store.schema import decode_result
    from autotune.store.seal import BadEntry

    named = entry.path == args.model  # else it is this host's, from the cache
    try:
        result = decode_result(entry)
    except BadEntry as bad:
        if named:
            raise errors.StoreError(f"{args.model}: expected a saved result, but it {bad}") from bad
        from autotune.loader import load_result

        # It is of another shape than this version's: set aside, and what later folders hold counts.
        found = load_result(args.model, entry.key.workload, args.format)
        if found is None:
            raise _nothing_saved(args) from None
        entry, result = find_saved(args), found
    if not named:
        warn_of_shortage(entry)
    return entry, result


def warn_of_shortage(entry: Entry) -> None:
    """Warn where loaders get a smaller configuration than this host's saved one, for want of memory."""
    from autotune.loader import ShrunkWarning, memory_shortage

    shortage = memory_shortage(entry)
    if shortage is not None:
        warnings.warn(shortage, ShrunkWarning, stacklevel=2)


def _show(args: argparse.Namespace) -> int:
    if args.json:
        print_document(find_saved(args).raw)
        return 0
    entry, result = open_saved(args)
    print_summary(result, entry.path)
    return 0


def _is_result(name: str) -> bool:
    """Whether it names a file that begins as a saved result does, and no model."""
    from autotune.store.entry import is_entry

    try:
        if not os.path.isfile(name):  # noqa: PTH113 (light; opening a pipe would wait for who writes to it)
            return False
        with open(name, "rb") as file:  # noqa: PTH123
            return is_entry(file.read(64))
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return False


def _read(args: argparse.Namespace) -> Entry:
    from autotune.store.cache import read_file
    from autotune.store.entry import parse
    from autotune.store.seal import BadEntry

    try:
        entry = parse(read_file(args.model), args.model)
    except BadEntry as bad:
        raise errors.StoreError(f"{args.model}: expected a saved result, but it {bad}") from bad
    except OSError as error:
        raise errors.StoreError(f"{args.model}: the saved result can't be read: {error.strerror or error}") from error
    if args.format is not None:
        raise errors.UsageError(f"{args.model} holds a saved result, which has its weight format: leave --format out")
    if args.workload not in (None, entry.key.workload):
        raise errors.UsageError(
            f"{args.model} holds a result for workload {entry.key.workload}, and --workload asks for {args.workload}"
        )
    return entry


def _nothing_saved(args: argparse.Namespace) -> errors.ResultNotFoundError:
    """What to raise where nothing is saved for a model.

    Raises:
        ModelError: It is no model that something could be saved for.
    """
    from autotune.model.analyse import analyse

    analyse(args.model, None if args.format == AUTO else args.format)
    workload = args.workload or _USUAL_WORKLOAD
    return errors.ResultNotFoundError(
        f"nothing is saved for {args.model} and workload {workload} on this host: "
        f"run `{tune_command(args.model, workload, args.format)}` first"
    )
