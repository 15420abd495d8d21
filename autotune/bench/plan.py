"""What to time for a model on a host, in the order in which a decision needs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from autotune.records import Host, Model, Point, Record, Site, Workload
from ternary_kernels.formats import get_format

SLICE_BYTES = 64 << 20
"""A larger site is timed on this much of its rows, rounded down, and scaled up: they are alike, and time is short."""

_ROW_MULTIPLE = 1024
_TOKENS_FULL = (1, 16, 64, 512, 4, 256, 2, 8, 32, 128)
_TOKENS_QUICK = (1, 16, 64, 256, 4)
_CONTEXTS_DECODE = (1024, 128, 4096)
_CONTEXTS_PREFILL = (0, 1024)
_PEAK_SIZE = 384, 384, 1024  # m, n_out, k_in: three matrices that fit any level-2 cache, long enough for full speed
_READ_BYTES = 64 << 20


class Task(Record, frozen=True):
    """A point with what the worker must know to run it."""

    point: Point
    rows: int | None = None
    """Rows to time of a matmul; None: all."""


def thread_counts(host: Host) -> tuple[int, ...]:
    """Thread counts to time: powers of two, all usable cores once, and all usable threads; ascending."""
    usable = host.limits.usable_threads
    counts = {1 << power for power in range(usable.bit_length()) if 1 << power <= usable}
    return tuple(sorted(counts | {min(len(host.cpu.cores) or usable, usable), usable}))


def ceilings(host: Host, kernel: str) -> tuple[Task, ...]:
    """What the host itself can do: streaming reads and arithmetic at each thread count."""
    return tuple(Task(_ceiling(op, count, kernel)) for count in thread_counts(host) for op in ("read", "peak"))


def plan(model: Model, host: Host, workload: Workload, kernel: str, *, quick: bool) -> tuple[Task, ...]:
    """Everything to time on the CPU.

    The order is that of the first round, so a budget that ends early still has what matters most: the host's
    ceilings, then every site at m = 1, then the other ops, then m in steps that halve the gaps.

    Args:
        model: Its distinct sites are timed once each.
        host: Gives the thread counts.
        workload: Its largest batch and its prompt bound m; its lengths bound the context.
        kernel: Kernel to time, a name of the registry.
        quick: Fewer values of m.
    """
    threads = thread_counts(host)
    tokens = _token_counts(workload, quick=quick)
    head_tokens = [m for m in tokens if m <= max(workload.max_batch, 1)]
    layer_sites = _distinct(site for layer in model.layers for site in layer.sites)
    products = [
        _matmul(site, m, count, kernel)
        for m in tokens
        for site in [*layer_sites, *([model.head] if m in head_tokens else [])]
        for count in reversed(threads)
    ]
    others = [
        *(Task(_small_ops(model, m, kernel)) for m in tokens),
        *(
            Task(_attention(model, m, context, count, kernel))
            for m, context in _attention_sizes(model, workload, tokens)
            for count in threads
        ),
    ]
    single = [task for task in products if task.point.m == 1]
    return (*ceilings(host, kernel), *single, *others, *(task for task in products if task.point.m != 1))


def describe_first_missing(tasks: Sequence[Task], timed: Iterable[Point]) -> str | None:
    """What a decision can't do without and wasn't timed, in words; None if it is all there.

    Needed are each site at m = 1 and the ceilings, with some thread count.
    """
    found = {_without_threads(point) for point in timed}
    for task in tasks:
        point = task.point
        needed = point.op in ("read", "peak") or (point.op == "matmul" and point.m == 1)
        if needed and _without_threads(point) not in found:
            return f"{point.op} {point.format} {point.n_out} x {point.k_in}" if point.op == "matmul" else point.op
    return None


def _without_threads(point: Point) -> tuple[str, str, int, int, int]:
    return point.op, point.format, point.n_out, point.k_in, point.m


def _distinct(sites: Iterable[Site]) -> list[Site]:
    seen = {(site.format, site.n_out, site.k_in): site for site in reversed(list(sites))}
    return list(reversed(seen.values()))


def _token_counts(workload: Workload, *, quick: bool) -> list[int]:
    """m from 1 to the largest batch or chunk that the search may choose; the largest itself is always there."""
    largest = max(workload.max_batch, min(workload.prompt_tokens, 512))
    grid = [m for m in (_TOKENS_QUICK if quick else _TOKENS_FULL) if m < largest]
    return [*grid[:2], largest, *grid[2:]] if largest > 1 else [1]


def _matmul(site: Site, m: int, threads: int, kernel: str) -> Task:
    row_bytes = get_format(site.format).size_bytes(1, site.k_in)
    rows = max(SLICE_BYTES // row_bytes // _ROW_MULTIPLE * _ROW_MULTIPLE, _ROW_MULTIPLE)
    return Task(
        Point("matmul", "cpu", kernel, threads, m, site.format, site.n_out, site.k_in),
        rows if rows < site.n_out else None,
    )


def _attention_sizes(model: Model, workload: Workload, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """(m, context) pairs: one new token at several contexts, and chunks on an empty and a filled cache."""
    longest = workload.prompt_tokens + workload.output_tokens
    decode = sorted({min(context, model.max_context - 1) for context in (*_CONTEXTS_DECODE, longest)})
    chunks = [m for m in tokens if m >= 16 and (m >= 64 or m == max(tokens))] or [max(tokens)]
    prefill = [
        (m, min(context, model.max_context - m))
        for m in chunks
        if m > 1
        for context in (*_CONTEXTS_PREFILL, *([longest] if longest > 2 * max(_CONTEXTS_PREFILL) else []))
        if m <= model.max_context
    ]
    return [(1, context) for context in decode] + sorted(set(prefill))


def _attention(model: Model, m: int, context: int, threads: int, kernel: str) -> Point:
    heads = model.attention
    return Point(
        "attention",
        "cpu",
        kernel,
        threads,
        m,
        "F16",
        heads.heads * heads.head_dim,
        heads.kv_heads * heads.head_dim,
        context,
    )


def _small_ops(model: Model, m: int, kernel: str) -> Point:
    return Point("layer_ops", "cpu", kernel, 1, m, "F32", model.intermediate_size, model.hidden_size)


def _ceiling(op: Literal["read", "peak"], threads: int, kernel: str) -> Point:
    if op == "read":
        return Point("read", "cpu", kernel, threads, k_in=_READ_BYTES)
    m, n_out, k_in = _PEAK_SIZE
    return Point("peak", "cpu", kernel, threads, m, "F32", n_out, k_in)
