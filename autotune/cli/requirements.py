"""`autotune requirements`: memory that models need by weight format and context, and how fast records say they are."""

from __future__ import annotations

import argparse
import itertools

from autotune import errors
from autotune.cli.arguments import whole

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from autotune.cli.arguments import Commands
    from autotune.model.requirements import LeftOut, Requirement
    from autotune.records.history import HistoryRecord

SPEED_HEAD = (
    "| model | format | workload | host | runs with | tokens/s | TPOT | TTFT | memory used |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "requirements", help="print the memory that models need, by weight format and context; measures nothing"
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="config.json files, GGUF files, names of presets (default: all presets)",
    )
    parser.add_argument(
        "--format", nargs="+", default=[], metavar="FORMAT", help="weight formats (default: all that suit the model)"
    )
    parser.add_argument(
        "--context",
        nargs="+",
        type=whole,
        default=[],
        metavar="TOKENS",
        help="KV-cache slots (default: 2048, 4096, and the longest that each model has)",
    )
    parser.add_argument("--results", metavar="FOLDER", help="say also how fast they are by the records in this folder")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--markdown", action="store_true", help="print a table in Markdown on standard output")
    output.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.set_defaults(run=_requirements)


def _requirements(args: argparse.Namespace) -> int:
    from autotune.model.requirements import requirements
    from autotune.model.source import PRESETS

    found = [requirements(model, args.format, args.context) for model in args.models or PRESETS]
    rows = [list(row) for each in found for _, row in itertools.groupby(each.needed, key=lambda need: need.format)]
    left_out = [format_ for each in found for format_ in each.left_out]
    longest = max(each.max_context for each in found)
    if args.context and min(args.context) > longest:
        raise errors.UsageError(
            f"--context must be within the models' longest context, {longest} tokens, got {min(args.context)}"
        )
    if not rows:
        raise errors.ModelError(_sentence(left_out[0]))
    models = list(dict.fromkeys(row[0].model for row in rows))
    records = [] if args.results is None else _latest(args.results, models, args.format)
    if args.json:
        from autotune.cli.output import print_record

        print_record({"needed": list(itertools.chain(*rows)), "left_out": left_out, "measured": records})
    elif args.markdown:
        from autotune.cli.output import print_document

        lines = [*_markdown(rows, args.context), *([""] if left_out else [])]
        lines += [f"- {_sentence(format_)}" for format_ in left_out]
        if records:
            lines += ["", *SPEED_HEAD, *map(speed_row, records)]
        print_document("".join(f"{line}\n" for line in lines).encode())
    else:
        from autotune.summary import show

        show(
            [
                *_lines(rows),
                *(("left out", _sentence(format_)) for format_ in left_out),
                *(("measured", speed_row(record).strip("| ")) for record in records),
            ]
        )
    return 0


def _markdown(rows: Sequence[Sequence[Requirement]], contexts: Sequence[int]) -> Iterator[str]:
    """A table with a row per model and format, and a column per context.

    Args:
        rows: Of one model and format each, by context.
        contexts: That were asked about; none: the usual ones, and a column for each model's longest.
    """
    from autotune.model.requirements import CONTEXTS
    from autotune.model.sizes import readable_bytes

    columns = sorted(set(contexts or CONTEXTS))
    heads = ["model", "format", "weights", *(f"{tokens:,} tokens" for tokens in columns)]
    heads += [] if contexts else ["longest context"]
    heads.append("read per token")
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for row in rows:
        by_context = {at.context_tokens: readable_bytes(at.needed_bytes) for at in row}
        cells = [row[0].model, _marked(row[0].format), readable_bytes(row[0].weights_bytes)]
        cells += [by_context.get(tokens, "-") for tokens in columns]
        if not contexts:
            longest = row[-1].context_tokens
            cells.append(f"{by_context[longest]} ({longest:,})")
        cells.append(readable_bytes(row[0].decode_bytes))
        yield f"| {' | '.join(cells)} |"


def _lines(rows: Sequence[Sequence[Requirement]]) -> Iterator[tuple[str, str]]:
    from autotune.model.sizes import readable_bytes

    for row in rows:
        memory = ", ".join(f"{readable_bytes(at.needed_bytes)} at {at.context_tokens:,} tokens" for at in row)
        yield (
            row[0].model,
            f"{_marked(row[0].format)}: weights {readable_bytes(row[0].weights_bytes)}; with cache, activations and "
            f"runtime {memory}; a token reads {readable_bytes(row[0].decode_bytes)} at {row[0].context_tokens:,}",
        )


def speed_row(record: HistoryRecord) -> str:
    """What a record measured, as a row of a table."""
    from autotune.model.sizes import readable_bytes
    from autotune.summary import three_digits

    measured, chosen, workload = record.measured, record.configuration, record.workload
    assert measured is not None, "only what was run is a measured speed"
    memory = [f"{readable_bytes(used)} on {device}" for device, used in record.memory_used_bytes.items()]
    layers = [f"{count} layers on {device}" for device, count in chosen.device_layers.items() if device != "cpu"]
    host = [record.cpu_name or "unknown CPU", f"{record.usable_threads} threads", *record.gpus]
    cells = [
        record.model_name.replace("|", "\\|"),
        record.weight_format,
        f"{workload.name}, {workload.prompt_tokens} + {workload.output_tokens} tokens",
        ", ".join(host),
        ", ".join([f"batch {chosen.batch_size}", f"{chosen.decode_threads} threads", *layers]),
        three_digits(measured.tokens_per_s),
        f"{three_digits(measured.tpot_s * 1e3)} ms",
        f"{three_digits(measured.ttft_s * 1e3)} ms",
        ", ".join(memory) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def _latest(results: str, models: Sequence[str], formats: Sequence[str]) -> list[HistoryRecord]:
    """The last record that was run of each model and format, workload and class of hosts, in the order of models."""
    from autotune.history.store import read_tree

    latest: dict[tuple[object, ...], HistoryRecord] = {}
    for _, record in sorted(read_tree(results), key=lambda stored: stored.record.measured_at):
        asked = record.model_name in models and (not formats or record.weight_format in formats)
        if asked and record.measured is not None and record.provenance != "replayed":
            latest[record.model_name, record.weight_format, record.workload, record.hardware_class] = record
    return sorted(latest.values(), key=lambda record: models.index(record.model_name))


def _marked(names: str) -> str:
    """Weight formats, with a mark at those that change ternary weights."""
    from ternary_kernels.formats import get_format

    return ", ".join(f"{name} (lossy)" if get_format(name).lossy else name for name in names.split(", "))


def _sentence(format_: LeftOut) -> str:
    return f"{format_.model} can't be stored in {format_.format}: {format_.reason}"
