"""Turns cases into calls, checks them, and times them and the host's ceilings in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.arena import Arena
from ternary_kernels.backends import Backend
from ternary_kernels.bench.cases import PEER, Case
from ternary_kernels.bench.ggml import Ggml, Pool, Product
from ternary_kernels.bench.numerics import MAX_TOKENS, check_kernel, check_peer
from ternary_kernels.bench.report import Ceiling, Timing
from ternary_kernels.bench.sampling import Candidate, sample
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.reference.layer_ops import room
from ternary_kernels.team import Team

_READ_BYTES = 64 << 20
_NOISY_SHARE = 0.05
_READ_SHARE = 0.25
"""Most of the arena that one streaming read takes: it is to come round to other memory too."""


def window_bytes(case: Case) -> int:
    """Size of a case's packed weights."""
    return get_format(case.format).size_bytes(case.n_out, case.k_in)


class Bench:
    """Threads, memory and buffers that all cases share; a context manager that ends the threads.

    Args:
        arena: Memory that weights are in.
        cpus: Logical CPUs in the order threads are pinned to them.
        counts: Thread counts.
        backend: Quantises activations, and measures the host's ceilings.
        ggml: The peer; None: there is none.
    """

    def __init__(
        self, arena: Arena, cpus: Sequence[int], counts: Sequence[int], backend: Backend, ggml: Ggml | None
    ) -> None:
        self._arena = arena
        self._cpus = cpus
        self._counts = counts
        self._backend = backend
        self._ggml = ggml
        self._teams: dict[int, Team] = {}
        self._pools: dict[int, Pool] = {}
        self._inputs: dict[tuple[int, int], NDArray[np.float32]] = {}
        self._outputs: dict[tuple[int, int], NDArray[np.float32]] = {}
        self._faults: dict[tuple[str, str, int, int, int], str | None] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            for count in self._counts:
                self._teams[count] = stack.enter_context(Team(count, self._cpus))
            for count in self._counts if self._ggml else ():
                assert self._ggml is not None
                self._pools[count] = stack.enter_context(self._ggml.pool(count))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(
        self, cases: Sequence[Case], seconds: float, *, seed: int = 0
    ) -> tuple[list[Timing], list[Ceiling], list[str]]:
        """Check and time.

        Args:
            cases: What to time, in the order of their first samples.
            seconds: For the samples; building and checking come on top.
            seed: Of the order of sampling.

        Returns:
            A timing per case that could be timed, the ceilings, and notes about what could not.
        """
        notes: dict[str, str] = {}
        subjects: list[tuple[Case, Candidate]] = []
        for case in cases:
            fault = self._fault(case)
            if fault is None:
                subjects.append((case, self._candidate(case)))
            else:
                notes.setdefault(_describe(case), f"not timed, {fault}")
        limits = [self._ceiling(what, count) for count in self._counts for what in ("read", "peak")]
        sample([*(candidate for _, candidate in limits), *(candidate for _, candidate in subjects)], seconds, seed=seed)
        for case, candidate in subjects:
            if candidate.error is not None:
                notes.setdefault(_describe(case), candidate.error)
        untimed = sum(1 for _, candidate in subjects if not candidate.samples_s and candidate.error is None)
        if untimed:
            notes["more --seconds needed"] = f"{untimed} of {len(subjects)} cases had no turn within {seconds:g} s"
        disturbed = sum(candidate.disturbed for _, candidate in subjects)
        total = sum(len(candidate.samples_s) for _, candidate in subjects)
        if disturbed > _NOISY_SHARE * total:
            notes["noise"] = f"other processes took a CPU away during {disturbed} of {total} samples"
        timings = [
            Timing(case, window_bytes(case), candidate.calls, tuple(candidate.samples_s))
            for case, candidate in subjects
            if candidate.samples_s and candidate.error is None
        ]
        ceilings = [
            Ceiling(what, threads, amount, candidate.calls, tuple(candidate.samples_s))
            for (what, threads, amount), candidate in limits
            if candidate.samples_s
        ]
        return timings, ceilings, [f"{what}: {why}" for what, why in notes.items()]

    def _fault(self, case: Case) -> str | None:
        """Why a case is not to be timed; cases that differ in nothing else share one check."""
        key = case.kernel, case.format, case.k_in, min(case.m, MAX_TOKENS), case.threads
        if key not in self._faults:
            try:
                if case.kernel == PEER:
                    assert self._ggml is not None
                    pool = self._pools[case.threads]
                    try:
                        found = check_peer(self._ggml, pool, case.format, case.k_in, case.m)
                    finally:
                        pool.rest()
                else:
                    found = check_kernel(*key[:4], self._teams[case.threads])
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            self._faults[key] = found
        return self._faults[key]

    def _candidate(self, case: Case) -> Candidate:
        weights = self._weights(window_bytes(case), cold=case.cold)
        x = self._buffer(self._inputs, case.m, case.k_in)
        out = self._buffer(self._outputs, case.m, case.n_out)
        if case.kernel == PEER:
            assert self._ggml is not None
            pool = self._pools[case.threads]
            peer = Product(self._ggml, pool, case.format, case.n_out, x, out)
            self._stack.callback(peer.close)
            return Candidate(lambda: peer(weights()), case.cold, pool.rest)
        team = self._teams[case.threads]
        ours = get_kernel(case.kernel, case.format)(case.format, case.n_out, case.k_in, case.m, team)
        if ours.format.ternary:
            # The peer starts from floating-point activations, and so must we.
            quantized = room(*x.shape)
            quantize = self._backend.step_ops(team).quantize(x, quantized)

            def call() -> None:
                quantize()
                ours(quantized, weights(), out)

            return Candidate(call, case.cold, lambda: _rest(team))
        return Candidate(lambda: ours(x, weights(), out), case.cold, lambda: _rest(team))

    def _ceiling(self, what: str, threads: int) -> tuple[tuple[str, int, int], Candidate]:
        team = self._teams[threads]
        if what == "peak":
            peak = self._backend.peak(team)
            return (what, threads, peak.operations), Candidate(peak, cold=False, after=lambda: _rest(team))
        size_bytes = min(_READ_BYTES, int(_READ_SHARE * self._arena.size_bytes))

        def read() -> None:
            self._backend.read(team, self._arena.take(size_bytes))

        self._backend.read(team, self._arena.take(0))  # compiles it: that takes none of the samples' time
        return (what, threads, size_bytes), Candidate(read, cold=True, after=lambda: _rest(team))

    def _weights(self, size_bytes: int, *, cold: bool) -> Callable[[], NDArray[np.uint8]]:
        """Where a call finds its weights: in the next window of the arena, or always in the same one."""
        if cold:
            return lambda: self._arena.take(size_bytes)
        window = self._arena.take(size_bytes)
        return lambda: window

    def _buffer(
        self, buffers: dict[tuple[int, int], NDArray[np.float32]], rows: int, columns: int
    ) -> NDArray[np.float32]:
        """Activations or results of that shape, which all cases share."""
        if (rows, columns) not in buffers:
            buffers[rows, columns] = np.random.default_rng(1).standard_normal((rows, columns), np.float32)
        return buffers[rows, columns]


def _rest(team: Team) -> None:
    """Have a team's threads sleep: those of compiled kernels spin for a while, beside whatever is timed next."""
    team.run(lambda member: None)  # noqa: ARG005 - every member's share is nothing


def _describe(case: Case) -> str:
    """What a note is about: one fault is seldom only that of one m or thread count."""
    return f"{case.kernel} {case.format} {case.n_out}x{case.k_in}"
