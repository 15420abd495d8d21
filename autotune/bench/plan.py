"""What to time for a model on a host, in the order in which a decision needs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autotune.bench.rivals import REFERENCE, Kernels, gates
from autotune.records import Host, Model, Point, Record, Site, Workload
from ternary_kernels.formats import get_format
from ternary_kernels.reference.ceilings import PEAK_SIZE

SLICE_BYTES = 64 << 20
"""A larger site is timed on this much of its rows, rounded down, and scaled up: they are alike, and time is short."""

_ROW_MULTIPLE = 1024
_TOKENS_FULL = (1, 16, 64, 512, 4, 256, 2, 8, 32, 128)
_TOKENS_QUICK = (1, 16, 64, 256, 4)
_CONTEXTS_DECODE = (1024, 128, 4096)
_CONTEXTS_PREFILL = (0, 1024)
LARGEST_CHUNK = 512
"""Longest prefill chunk that is timed, and so that the search offers."""
_SHORT_CHUNK = 64  # attention on shorter ones takes so little of a step that it is interpolated
_READ_BYTES = 64 << 20


class Task(Record, frozen=True):
    """A point with what the worker must know to run it."""

    point: Point
    rows: int | None = None
    """Rows to time of a matmul; None: all."""


def thread_counts(host: Host) -> tuple[int, ...]:
    """Thread counts to time: powers of two, all alike cores, all usable cores, and all usable threads; ascending."""
    usable = host.limits.usable_threads
    powers = {1 << power for power in range(usable.bit_length())}
    return tuple(sorted(powers | {alike_threads(host), min(len(host.cpu.cores) or usable, usable), usable}))


def alike_threads(host: Host) -> int:
    """Threads up to which each has a core for itself, of one kind and in one package.

    All get equal shares of the work, so one thread more, on a slower core, a shared one or across packages, may make
    all of them wait: beyond this count time is no smooth function of threads.
    """
    usable, cores = host.limits.usable_threads, host.cpu.cores
    alike = sum((core.kind, core.package) == (cores[0].kind, cores[0].package) for core in cores)
    return min(alike or usable, usable)


def ceilings(host: Host, kernels: Kernels) -> tuple[Task, ...]:
    """What the host itself can do: streaming reads and arithmetic at each thread count."""
    peaks = (kernels.main, kernels.tiles) if kernels.tiles else (kernels.main,)
    return tuple(
        Task(point)
        for count in thread_counts(host)
        for point in (_read(count, kernels.main), *(_peak(count, kernel) for kernel in peaks))
    )


def plan(models: Sequence[Model], host: Host, workload: Workload, kernels: Kernels, *, quick: bool) -> tuple[Task, ...]:
    """Everything to time on the CPU.

    The order is that of the first round, so a budget that ends early still has what matters most: the host's
    ceilings, then every site at m = 1, then the other ops, then m in steps that halve the gaps. Each step goes
    through all models and kernels. Last comes the reference where other kernels are timed.

    Args:
        models: One model in one weight format or in several. Distinct sites of all are timed once each.
        host: Gives the thread counts.
        workload: Its largest batch and its prompt bound m; its lengths are among the contexts.
        kernels: Kernels to time.
        quick: Fewer values of m.
    """
    model = models[0]  # all have the same geometry
    threads = thread_counts(host)
    chunk = min(workload.prompt_tokens, LARGEST_CHUNK)
    chunks = token_counts(chunk, quick=quick)
    batches = token_counts(workload.max_batch, quick=quick)
    tokens = token_counts(max(chunk, workload.max_batch), quick=quick)
    layer_sites = {
        (site.format, site.n_out, site.k_in): site
        for held in models
        for layer in dict.fromkeys(held.layers)
        for site in layer.sites
    }
    heads = dict.fromkeys(held.head for held in models)
    timed = dict.fromkeys(
        product_point(site, m, count, kernel)
        for m in dict.fromkeys((*tokens, *batches))
        # Of a prompt, only the last token goes through the head.
        for site in (*(layer_sites.values() if m in tokens else ()), *(heads if m in batches else ()))
        for count in reversed(threads)
        for kernel in kernels.at(site.format, m)
    )
    products = last_the_reference(tuple(timed))
    others = [
        *(
            Task(small_ops_point(model, m, count, kernels.main))
            for m in tokens
            # One token is too little work to share.
            for count in (reversed(threads) if m > 1 else (1,))
        ),
        *(
            Task(attention_point(model, m, context, count, kernels.main))
            for m, context in attention_sizes(model, workload, chunks)
            for count in threads
        ),
    ]
    first, last = products
    single = [sliced(point) for point in first if point.m == 1]
    many = [sliced(point) for point in (*(point for point in first if point.m > 1), *last)]
    return (*ceilings(host, kernels), *single, *dict.fromkeys(others), *many)


def describe_first_missing(tasks: Sequence[Task], timed: Iterable[Point]) -> str | None:
    """What a decision can't do without and wasn't timed, in words; None if it is all there.

    Needed are each site at m = 1 and the ceilings, with some thread count; of a GPU what a handover takes as well.
    """
    found = {_without_threads(point) for point in timed}
    for task in tasks:
        point = task.point
        needed = point.op in ("read", "peak", "handover") or (point.op == "matmul" and point.m == 1)
        if needed and point.launch != "eager" and _without_threads(point) not in found:
            return describe(point)
    return None


def describe(point: Point) -> str:
    """What a point times, in words that m and threads don't change."""
    return f"{point.op} {point.format} {point.n_out} x {point.k_in}" if point.op == "matmul" else point.op


def _without_threads(point: Point) -> tuple[object, ...]:
    """What a point times, whatever the number of threads and the kernel, and so the arithmetic of a peak."""
    kind = point.device, point.op, point.launch
    return (*kind, point.format, point.n_out, point.k_in, point.m) if point.op == "matmul" else kind


def token_counts(largest: int, *, quick: bool) -> list[int]:
    """Values of m from 1 to the largest, which is always there, in steps that halve the gaps."""
    grid = [m for m in (_TOKENS_QUICK if quick else _TOKENS_FULL) if m < largest]
    return [*grid[:2], largest, *grid[2:]]


def product_point(site: Site, m: int, threads: int, kernel: str) -> Point:
    """A site's product with m tokens."""
    return Point("matmul", "cpu", kernel, threads, m, site.format, site.n_out, site.k_in)


def attention_point(model: Model, m: int, context: int, threads: int, kernel: str) -> Point:
    """A layer's attention of m new tokens over a context."""
    heads, kv_heads, head_dim = model.attention.heads, model.attention.kv_heads, model.attention.head_dim
    return Point("attention", "cpu", kernel, threads, m, "F16", heads * head_dim, kv_heads * head_dim, context)


def small_ops_point(model: Model, m: int, threads: int, kernel: str) -> Point:
    """A layer's small operations on m tokens."""
    return Point("layer_ops", "cpu", kernel, threads, m, "F32", model.intermediate_size, model.hidden_size)


def last_the_reference(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Splits products into those to time, and the reference where others are timed: first where it spares the rest."""
    spared_by = gates(points)
    comparing = {index for spares in spared_by for index in spares}
    first = [point for index, point in enumerate(points) if index not in comparing and not spared_by[index]]
    spared = [point for index, point in enumerate(points) if spared_by[index]]
    return first, [*(points[index] for index in sorted(comparing)), *spared]


def sliced(point: Point, slice_bytes: int = SLICE_BYTES) -> Task:
    """A product, of as many of its rows as there is time or memory for."""
    row_bytes = get_format(point.format).size_bytes(point.n_out, point.k_in) // point.n_out
    rows = max(slice_bytes // row_bytes // _ROW_MULTIPLE * _ROW_MULTIPLE, _ROW_MULTIPLE)
    return Task(point, rows if rows < point.n_out else None)


def attention_sizes(model: Model, workload: Workload, chunks: Sequence[int]) -> list[tuple[int, int]]:
    """(m, context) pairs: one new token at several contexts, and chunks on an empty and a filled cache."""
    longest = workload.prompt_tokens + workload.output_tokens
    decode = {(1, min(context, model.max_context - 1)) for context in (*_CONTEXTS_DECODE, longest)}
    filled = (*_CONTEXTS_PREFILL, *((longest,) if longest > 2 * max(_CONTEXTS_PREFILL) else ()))
    prefill = {
        (m, min(context, model.max_context - m))
        for m in chunks
        if m > 1 and (m >= _SHORT_CHUNK or m == max(chunks))
        for context in filled
    }
    return [*sorted(decode), *sorted(prefill)]


def _read(threads: int, kernel: str) -> Point:
    return Point("read", "cpu", kernel, threads, k_in=_READ_BYTES)


def _peak(threads: int, kernel: str) -> Point:
    m, n_out, k_in = PEAK_SIZE
    # numpy has no fast product of integers.
    return Point("peak", "cpu", kernel, threads, m, "F32" if kernel == REFERENCE else "I8", n_out, k_in)
