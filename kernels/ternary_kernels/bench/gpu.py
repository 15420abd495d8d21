"""Times the GPU kernels beside the GPU's own ceilings and torch: ``python -m ternary_kernels.bench.gpu --help``."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.box import ASCII_DOUBLE_HEAD
from rich.console import Console
from rich.table import Table

from ternary_kernels.bench.arguments import Parser, read_model, read_seconds, read_shape, read_target, read_tokens
from ternary_kernels.bench.shapes import MODELS, ModelShapes, Shape

try:
    import torch
except ImportError:
    sys.exit("python -m ternary_kernels.bench.gpu: torch isn't installed (the extra gpu): pip install torch")

from ternary_kernels.cuda.activations import Quantized, quantize
from ternary_kernels.cuda.arena import DeviceArena
from ternary_kernels.cuda.ceilings import Peak, copy
from ternary_kernels.cuda.graphs import capture, event_stopwatch
from ternary_kernels.cuda.product import MODULES, Product, get_product

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LARGE = Shape(("16 MiB",), 16384, 4096)
"""Beside a model's own: the size from which a kernel is held to the copy bandwidth."""

PEER = "torch bf16"
_REFERENCE, _REFERENCE_TOKENS = "torch", (1, 64)
"""The slow twin, and where it is timed."""

_COPY_BYTES = 256 << 20
_ARENA_BYTES = 512 << 20
_LEAST_ARENA_L2S = 4
_MOST_REPEATS = 512
_SAMPLE_S = 1e-3
_LEAST_ROUNDS, _MOST_ROUNDS = 6, 40

W2A8_LAUNCH_S, W2A8_BYTES_PER_S, W2A8_COPY_BYTES_PER_S = 10.4e-6, 856e9, 1400e9
"""The published W2A8 kernel's times on an A100-40GB follow launch + bytes / bandwidth. A copy there moves some
1,400 GB/s (nine tenths of the data sheet's 1,555): by that the kernel's bandwidth is scaled to another GPU's.

Source: microsoft/BitNet, gpu/README.md, the table of kernel performance."""


@dataclass
class Case:
    """One thing to time.

    Attributes:
        shape: The matrix; None for a ceiling.
        m: Tokens.
        kernel: ``triton``, ``torch``, or the peer.
        work_bytes: Weights that a call reads; of the copy the bytes read and written.
        operations: Of one call.
        replay: Runs ``repeats`` calls, one after the other.
        samples_s: Seconds per call.
    """

    shape: Shape | None
    m: int
    kernel: str
    work_bytes: int
    operations: int
    replay: Callable[[], object]
    repeats: int
    samples_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median seconds per call."""
        return float(np.median(self.samples_s))


class Row(msgspec.Struct, frozen=True):
    """What came of a case."""

    sites: tuple[str, ...]
    n_out: int
    k_in: int
    m: int
    kernel: str
    weight_bytes: int
    samples_s: tuple[float, ...]
    of_copy_bandwidth: float
    """Of the bandwidth at which a copy reads and writes."""
    times_bf16: float | None
    """How many times as fast as torch's bf16 product of the same shape."""
    times_w2a8: float | None
    """How many times as fast as the published W2A8 kernel, scaled; one token only."""


class Report(msgspec.Struct, frozen=True):
    """All of a run."""

    gpu: str
    versions: dict[str, str]
    copy_bytes_per_s: float
    int8_or_f16_operations_per_s: float
    arithmetic: str
    rows: tuple[Row, ...]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print a table.

    Args:
        argv: Arguments; None: the process' own.

    Returns:
        Exit code 0. What can't be timed as asked for ends the process with 2.
    """
    parser = Parser(
        prog="python -m ternary_kernels.bench.gpu",
        description="Times I2_S products on a GPU by CUDA graphs, weights rotating through more than its L2 cache, "
        "beside its copy bandwidth, torch's bf16 products and the published W2A8 kernel.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", type=read_model, default="bitnet-b1.58-2B-4T", metavar="NAME", help=", ".join(MODELS)
    )
    parser.add_argument(
        "--shape", action="append", type=read_shape, metavar="N_OUTxK_IN", help="shapes of your own instead"
    )
    parser.add_argument("--m", nargs="+", type=read_tokens, default=TOKENS, metavar="M", help="tokens at once")
    parser.add_argument("--kernel", nargs="+", choices=MODULES, default=tuple(MODULES), help="kernels (default: all)")
    parser.add_argument(
        "--seconds", type=read_seconds, default=40.0, metavar="S", help="time for the samples (default: 40)"
    )
    parser.add_argument("--device", default="cuda", help="torch's name of the device (default: cuda)")
    parser.add_argument("--json", type=read_target, metavar="FILE", help="write raw samples and figures there")
    arguments = parser.parse_args(argv)
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    device = torch.device(arguments.device)
    shapes = arguments.shape or [*fused_shapes(MODELS[arguments.model]), LARGE]
    cases = [*_ceilings(device), *_cases(shapes, sorted(set(arguments.m)), arguments.kernel, device, parser)]
    _sample(cases, arguments.seconds, device)
    report = _report(cases, device)
    show(report)
    if arguments.json is not None:
        Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 0


def fused_shapes(model: ModelShapes) -> list[Shape]:
    """A layer's matrices as a GPU multiplies with them: q, k and v are one, gate and up another."""
    sizes = {site: (shape.n_out, shape.k_in) for shape in model.shapes for site in shape.sites}
    groups = ("q", "k", "v"), ("o",), ("gate", "up"), ("down",)
    return [Shape(sites, sum(sizes[site][0] for site in sites), sizes[sites[0]][1]) for sites in groups]


def _ceilings(device: torch.device) -> list[Case]:
    source, target = (torch.zeros(_COPY_BYTES // 2, dtype=torch.uint8, device=device) for _ in range(2))
    peak = Peak(device, *(((256, 256, 256),) if device.type == "cpu" else ()))
    copied = capture(lambda: copy(source, target), 4, device)
    return [
        Case(None, 0, "copy", _COPY_BYTES, 0, copied, 4),
        Case(None, 0, f"peak {peak.arithmetic}", 0, peak.operations, capture(peak, 4, device), 4),
    ]


def _cases(
    shapes: Sequence[Shape], tokens: Sequence[int], kernels: Sequence[str], device: torch.device, parser: Parser
) -> list[Case]:
    arena = DeviceArena(_arena_bytes(device), device)
    found = []
    for shape in shapes:
        for m in tokens:
            x = torch.randn((m, shape.k_in), device=device)
            for kernel in kernels:
                if kernel == _REFERENCE and m not in _REFERENCE_TOKENS:
                    continue
                try:
                    product = get_product(kernel, "I2_S")("I2_S", shape.n_out, shape.k_in, m, device)
                except ValueError as error:
                    parser.error(str(error))
                call = partial(_multiply, product, quantize(x), torch.empty((m, shape.n_out), device=device), arena)
                found.append(_case(shape, m, kernel, product.code_bytes, call, arena, device))
            size = 2 * shape.n_out * shape.k_in
            if size <= arena.size_bytes // 2:
                out = torch.empty((m, shape.n_out), dtype=torch.bfloat16, device=device)
                call = partial(_multiply_bf16, x.to(torch.bfloat16), shape, out, arena)
                found.append(_case(shape, m, PEER, size, call, arena, device))
    return found


def _multiply(product: Product, x: Quantized, out: torch.Tensor, arena: DeviceArena) -> None:
    """Multiply with the next window's weights; the activations are quantised already."""
    product(x, product.window(arena.take(product.code_bytes)), out)


def _multiply_bf16(x: torch.Tensor, shape: Shape, out: torch.Tensor, arena: DeviceArena) -> None:
    weights = arena.take(2 * shape.n_out * shape.k_in).view(torch.bfloat16).view(shape.n_out, shape.k_in)
    torch.mm(x, weights.T, out=out)


def _case(
    shape: Shape, m: int, kernel: str, size: int, call: Callable[[], None], arena: DeviceArena, device: torch.device
) -> Case:
    """A case whose graph makes 64 calls, more where these don't go half way through the arena; at most once through."""
    calls = arena.size_bytes // size
    repeats = max(2, min(max(64, calls // 2), calls, _MOST_REPEATS))
    operations = 2 * m * shape.n_out * shape.k_in
    return Case(shape, m, kernel, size, operations, capture(call, repeats, device), repeats)


def _arena_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 8 << 20
    return max(_ARENA_BYTES, _LEAST_ARENA_L2S * torch.cuda.get_device_properties(device).L2_cache_size)


def _sample(cases: Sequence[Case], seconds: float, device: torch.device) -> None:
    """Sample all cases in turns, in random order, until the time is up; each at least a few times."""
    order = random.Random(0)  # noqa: S311 (an order of sampling, not a secret)
    end = time.monotonic() + seconds
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.monotonic() > end:
            break
        for case in order.sample(list(cases), len(cases)):
            case.replay()
            once_s = _timed(case.replay, 1, device)
            replays = max(1, math.ceil(_SAMPLE_S / max(once_s, 1e-9)))
            case.samples_s.append(_timed(case.replay, replays, device) / replays / case.repeats)


def _timed(replay: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds that so many replays take on the device."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        for _ in range(count):
            replay()
        return time.perf_counter() - start_s
    return event_stopwatch(replay, count)


def _report(cases: Sequence[Case], device: torch.device) -> Report:
    copied, peak, *products = cases
    copy_bytes_per_s = copied.work_bytes / copied.median_s
    peers = {(case.shape, case.m): case.median_s for case in products if case.kernel == PEER}
    rows = []
    for case in products:
        assert case.shape is not None
        peer_s = peers.get((case.shape, case.m))
        w2a8_s = W2A8_LAUNCH_S + case.work_bytes / (W2A8_BYTES_PER_S * copy_bytes_per_s / W2A8_COPY_BYTES_PER_S)
        rows.append(
            Row(
                *case.shape,
                m=case.m,
                kernel=case.kernel,
                weight_bytes=case.work_bytes,
                samples_s=tuple(case.samples_s),
                of_copy_bandwidth=case.work_bytes / case.median_s / copy_bytes_per_s,
                times_bf16=None if peer_s is None else peer_s / case.median_s,
                times_w2a8=w2a8_s / case.median_s if case.m == 1 and case.kernel == "triton" else None,
            )
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "torch's CPU device"
    versions = {"torch": str(torch.__version__), "cuda": torch.version.cuda or "none"}
    return Report(name, versions, copy_bytes_per_s, peak.operations / peak.median_s, peak.kernel, tuple(rows))


def show(report: Report) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False, markup=False, width=max(Console().width, 120))
    console.print(f"{report.gpu}; {', '.join(f'{name} {version}' for name, version in report.versions.items())}")
    console.print(f"copy: {report.copy_bytes_per_s / 1e9:.0f} GB/s read and written")
    console.print(f"{report.arithmetic}: {report.int8_or_f16_operations_per_s / 1e12:.1f} Tops/s")
    table = Table(box=ASCII_DOUBLE_HEAD)
    for column in ("site", "rows x columns", "m", "kernel", "us", "quartiles", "GB/s", "% copy", "x bf16", "x W2A8"):
        table.add_column(column, justify="left" if column in ("site", "kernel") else "right", no_wrap=True)
    previous = None
    for row in report.rows:
        if previous not in (None, (row.n_out, row.k_in)):
            table.add_section()
        previous = row.n_out, row.k_in
        lower, median, upper = np.percentile(row.samples_s, [25, 50, 75]) * 1e6
        table.add_row(
            "/".join(row.sites) or "-",
            f"{row.n_out} x {row.k_in}",
            str(row.m),
            row.kernel,
            f"{median:.2f}",
            f"{lower:.2f}-{upper:.2f}",
            f"{row.weight_bytes / median * 1e-3:.0f}",
            f"{100 * row.of_copy_bandwidth:.0f}",
            "" if row.times_bf16 is None else f"{row.times_bf16:.2f}",
            "" if row.times_w2a8 is None else f"{row.times_w2a8:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
