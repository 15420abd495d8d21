"""CUDA graphs: what is replayed is what was called. Where there is no GPU the calls are made as they are."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from ternary_kernels.cuda import graphs
from ternary_kernels.cuda.graphs import capture


def test_a_replay_runs_every_call_once(device):
    counters = torch.zeros(5, device=device)
    turns = iter(range(1 << 20))

    def call():
        counters[next(turns) % 5].add_(1)

    replay = capture(call, 5, device)
    counters.zero_()
    for _ in range(3):
        replay()
    assert counters.tolist() == [3.0] * 5


def test_what_a_call_allocates_is_its_own_in_each_of_several_graphs(device):
    """They share the memory, one after the other."""
    inputs = [torch.full((1000,), float(value), device=device) for value in range(4)]
    outputs = [torch.zeros(1000, device=device) for _ in inputs]

    def adds(source, target):
        return lambda: target.copy_((source + 1) * (source + 2))

    replays = [capture(adds(*pair), 2, device) for pair in zip(inputs, outputs, strict=True)]
    for replay in (*replays, *reversed(replays)):
        replay()
    assert [output[0].item() for output in outputs] == [2.0, 6.0, 12.0, 20.0]


def test_tensors_live_as_long_as_what_replays_them(device):
    def build():
        source, target = torch.full((1 << 20,), 3.0, device=device), torch.zeros(1 << 20, device=device)
        return capture(lambda: target.copy_(source), 1, device), target

    replay, target = build()
    torch.zeros(1 << 20, device=device)  # takes the place of what was let go
    replay()
    assert target.sum().item() == 3.0 * (1 << 20)


def test_a_call_that_raises_does_so_at_once(device):
    def fail():
        raise ValueError("expected something else")

    with pytest.raises(ValueError, match="expected something else"):
        capture(fail, 1, device)()


def test_no_calls_are_no_graph(device):
    with pytest.raises(ValueError, match=r"^graph: expected at least one call, got 0$"):
        capture(lambda: None, 0, device)


def test_on_a_gpu_one_call_goes_before_those_that_are_recorded_and_all_graphs_share_memory(monkeypatch):
    """As torch.cuda's stand-ins are told; what a real one does with it the tests above show."""
    said, pools = [], []

    class Stream:
        def wait_stream(self, other):
            said.append("waits")

        def synchronize(self):
            said.append("is done")

    class Graph:
        def replay(self):
            said.append("replayed")

    def record(graph, pool, stream):
        said.append("records")
        pools.append(pool)
        return nullcontext()

    for name, stand_in in {
        "Stream": Stream, "current_stream": Stream, "stream": nullcontext, "CUDAGraph": Graph, "graph": record,
        "graph_pool_handle": object,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graphs._pool.cache_clear()
    graphs._stream.cache_clear()
    try:
        for _ in range(2):
            replay = capture(lambda: said.append("called"), 3, "cuda:0")
    finally:
        graphs._pool.cache_clear()
        graphs._stream.cache_clear()
    assert said == ["waits", "called", "is done", "records", *["called"] * 3] * 2
    replay()
    assert said[-1] == "replayed"
    assert pools[0] is pools[1]
