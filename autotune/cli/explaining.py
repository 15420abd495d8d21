"""`explain`: why a saved result is what it is, and what other settings would do."""

from __future__ import annotations

from autotune import errors
from autotune.cli.arguments import add_json, whole
from autotune.cli.saved import add_saved, open_saved

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    import argparse

    from autotune.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add it to the parser."""
    explain = commands.add_parser(
        "explain",
        help="say why the saved result is what it is, and what other settings would do",
        description="Says why the saved result is what it is. With settings, compares them with the chosen ones, as "
        "predicted from what was measured, and where they were run as measured; those not given stay as chosen.",
    )
    add_saved(explain)
    settings = explain.add_argument_group("what if")
    settings.add_argument("--cpu-threads", type=whole, metavar="N", help="CPU threads for decode and prefill")
    settings.add_argument("--decode-threads", type=whole, metavar="N", help="CPU threads for decode")
    settings.add_argument("--prefill-threads", type=whole, metavar="N", help="CPU threads for prefill")
    settings.add_argument("--batch", type=whole, metavar="N", help="sequences decoded together")
    settings.add_argument("--chunk", type=whole, metavar="TOKENS", help="prompt tokens processed at once")
    settings.add_argument("--gpu-layers", type=whole, metavar="N", help="layers on GPUs")
    add_json(explain)
    explain.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> int:
    asked = (args.cpu_threads, args.decode_threads, args.prefill_threads, args.batch, args.chunk, args.gpu_layers)
    if args.cpu_threads is not None and (args.decode_threads, args.prefill_threads) != (None, None):
        raise errors.UsageError("--cpu-threads is for both steps: leave out --decode-threads and --prefill-threads")
    _, result = open_saved(args)
    from autotune import explanation
    from autotune.cli.output import print_record
    from autotune.summary import show

    if all(value is None for value in asked):
        if args.json:
            print_record(explanation.to_json(result))
        else:
            show(explanation.explain(result))
        return 0
    from autotune.whatif import Wish, what_if

    wish = Wish(
        decode_threads=args.cpu_threads if args.decode_threads is None else args.decode_threads,
        prefill_threads=args.cpu_threads if args.prefill_threads is None else args.prefill_threads,
        batch_size=args.batch,
        prefill_chunk=args.chunk,
        gpu_layers=args.gpu_layers,
    )
    answer = what_if(result, wish)
    if args.json:
        print_record(explanation.answer_to_json(answer))
    else:
        show(explanation.explain_answer(answer))
    return 0
