"""CUDA graphs: work is recorded once and launched as a whole, so that no launch waits for the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakSet

import torch

Call = Callable[[], object]


def capture(call: Call, repeats: int, device: torch.device | str) -> Call:
    """Record so many calls, one after the other, and return what replays them all.

    What a call allocates is taken from memory that all graphs of a device share, so they must be replayed one after the
    other; what they compute doesn't outlive the next replay of any. That memory is free again when all graphs are gone.

    Args:
        call: Work for a device that neither waits for it nor depends on what it computed.
        repeats: How often it is recorded, at least once. It may use other memory each time.
        device: Where the work runs. There are graphs on CUDA alone; on another device the calls are made as they are.

    Raises:
        ValueError: Fewer repeats than one.
        RuntimeError: The work can't be recorded.
    """
    if repeats < 1:
        raise ValueError(f"graph: expected at least one call, got {repeats}")
    device = torch.device(device)
    if device.type != "cuda":
        return _Calls(call, repeats)
    with torch.cuda.device(device):
        recorder = _recorder(torch.cuda.current_device())
        stream = recorder.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Kernels are compiled and libraries set up by a first call, which can't be recorded.
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=recorder.pool(), stream=stream):
            for _ in range(repeats):
                call()
    replay = _Replay(graph, call)
    recorder.replays.add(replay)
    return replay


def event_stopwatch(call: Call, calls: int) -> float:
    """Seconds that calls take on the GPU, by events in its own stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


class _Calls:
    """Makes the calls as they are."""

    def __init__(self, call: Call, repeats: int) -> None:
        self._call = call
        self._repeats = repeats

    def __call__(self) -> None:
        for _ in range(self._repeats):
            self._call()


class _Replay:
    """Replays a graph. It keeps the call, whose tensors the graph knows by their addresses alone."""

    def __init__(self, graph: torch.cuda.CUDAGraph, call: Call) -> None:
        self._graph = graph
        self._call = call

    def __call__(self) -> None:
        self._graph.replay()


class _Recorder:
    """What the graphs of the current device are recorded with.

    Attributes:
        stream: Where they are; with another for each they could share no memory.
        replays: Those there are.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.replays: WeakSet[_Replay] = WeakSet()
        self._pool: Any = None

    def pool(self) -> Any:
        """Memory for what calls allocate: with some for each graph they would keep as much as all of them together.

        torch gives it up with the last graph that uses it, and fails where it is asked for again.
        """
        if not self.replays:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


@cache
def _recorder(index: int) -> _Recorder:  # noqa: ARG001 - of the device of that index, which is the current one
    return _Recorder()
