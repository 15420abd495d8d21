"""`export`: the saved configuration in the words of another runtime."""

from __future__ import annotations

import os
import sys

from autotune import errors
from autotune.cli.output import print_document
from autotune.cli.saved import add_saved, open_saved
from autotune.export.targets import MODEL_PATH, TARGETS, export

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add it to the parser."""
    parser = commands.add_parser("export", help="print the saved configuration as another runtime takes it")
    add_saved(parser)
    parser.add_argument("--to", required=True, choices=TARGETS, metavar="TARGET", help=f"one of {', '.join(TARGETS)}")
    forms = "; ".join(f"{name}: {', '.join(target.forms)}" for name, target in TARGETS.items() if target.forms[1:])
    parser.add_argument("--form", metavar="FORM", help=f"which of a target's forms, by default the first ({forms})")
    parser.add_argument(
        "--model-path",
        metavar="PATH",
        help=f"where the runtime finds the model's file, for command lines (default: the GGUF file that MODEL is, "
        f"or {MODEL_PATH})",
    )
    parser.add_argument(
        "-o",
        dest="file",
        metavar="FILE",
        help="write it to FILE, whole or not at all; a file that is there is replaced",
    )
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    target = TARGETS[args.to]
    if args.form is not None and args.form not in target.forms:
        raise errors.UsageError(
            f"--form must be one of {', '.join(target.forms)} for --to {args.to}, got {args.form!r}"
        )
    if args.model_path is not None and not target.names_model:
        raise errors.UsageError(f"--model-path is for command lines, and --to {args.to} names no model: leave it out")
    _, result = open_saved(args)
    path = args.model_path or _own_path(args.model)
    text, notes = export(result, args.to, args.form, path or MODEL_PATH)
    if args.file is None:
        print_document(os.fsencode(text))
    else:
        from autotune.store.files import write_output

        write_output(args.file, os.fsencode(text), "the export", keep=(args.model, path))
        print(f"wrote {args.file}", file=sys.stderr)
    if target.names_model and path is None:
        notes = (f"{MODEL_PATH} stands for the model's file: --model-path names it", *notes)
    for note in notes:
        print(f"autotune: note: {note}", file=sys.stderr)
    return 0


def _own_path(model: str) -> str | None:
    """The path of a GGUF model, of a split one the first file: what llama.cpp takes. None for other models."""
    from autotune.model.source import resolve, split_paths

    source = resolve(model)
    return split_paths(source)[0] if source.kind == "gguf" else None
