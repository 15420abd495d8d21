"""`autotune cache`: list, find, forget, export and import saved results."""

from __future__ import annotations

import os
import sys

from autotune import errors
from autotune.cli.arguments import add_json, add_model, add_workload
from autotune.cli.output import print_document, print_record
from autotune.cli.saved import find_saved

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add it to the parser."""
    parser = commands.add_parser("cache", help="list, find, forget, export or import saved results")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="list saved results")
    add_json(listing)
    listing.set_defaults(run=_cache_list)

    path = actions.add_parser("path", help="print the folders that are read, the first one first")
    path.set_defaults(run=_cache_path)

    forget = actions.add_parser("forget", help="delete saved results")
    forget.add_argument("model", nargs="?", metavar="MODEL", help="model file or preset")
    forget.add_argument("--all", action="store_true", help="delete all, of all hosts and models")
    forget.add_argument("--workload", help="only this workload's")
    forget.add_argument("--format", help="the weight format it was tuned with, if it was given")
    forget.set_defaults(run=_cache_forget)

    export = actions.add_parser(
        "export", help="write a saved result to a file, or under its hardware class to a folder"
    )
    add_model(export)
    export.add_argument(
        "file", metavar="FILE", help="a file, or a folder (one that exists, or a name that ends with /)"
    )
    add_workload(export)
    export.set_defaults(run=_cache_export)

    importing = actions.add_parser("import", help="save what `export` wrote on this host or on another one of its kind")
    importing.add_argument("file", metavar="FILE", help="a file, or a folder with results of several hardware classes")
    importing.add_argument(
        "--as-is",
        action="store_true",
        help="save it for the host that measured it, whichever that is (for disk images and shared folders)",
    )
    importing.set_defaults(run=_cache_import)


def _cache_list(args: argparse.Namespace) -> int:
    from autotune.host.hardware_class import hardware_class
    from autotune.store.manage import list_entries
    from autotune.summary import show

    stored = list(list_entries())
    if args.json:
        print_record(
            [
                {
                    "path": os.fsencode(one.entry.path).decode(errors="replace"),
                    "host": one.result.host.label,
                    "host_fingerprint": one.entry.key.host,
                    "hardware_class": hardware_class(one.result.host),
                    "provenance": one.result.provenance,
                    "origin": one.result.origin,
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
            (
                f"{one.result.model.name}, {one.entry.key.workload}",
                f"{one.result.created_at} {one.result.provenance} {hardware_class(one.result.host)} {one.entry.path}",
            )
            for one in stored
        )
        if not stored:
            print("autotune: nothing is saved", file=sys.stderr)
    return 0


def _cache_path(_: argparse.Namespace) -> int:
    from autotune.store.paths import layers

    print_document(b"".join(os.fsencode(layer) + b"\n" for layer in layers()))
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

    print(f"wrote {export(find_saved(args), args.file, keep=(args.model,))}", file=sys.stderr)
    return 0


def _cache_import(args: argparse.Namespace) -> int:
    from autotune.adoption import import_

    for path, result in import_(args.file, as_is=args.as_is):
        what = f"{result.model.name}, {result.workload.name}"
        if path is None:
            print(f"kept {what}: this host measured it itself, {result.measured_at}", file=sys.stderr)
        else:
            origin = result.origin
            by = "" if origin is None else f", measured on {origin.host_label}, {origin.measured_at}"
            print(f"saved {path} ({what}{by})", file=sys.stderr)
    return 0
