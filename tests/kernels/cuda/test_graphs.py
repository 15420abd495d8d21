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


@pytest.fixture
def said(monkeypatch):
    """What torch.cuda's stand-ins are told; what a real one does with it the tests above show."""
    told = []

    class Stream:
        def wait_stream(self, other):
            told.append("waits")

        def synchronize(self):
            told.append("is done")

    class Graph:
        def replay(self):
            told.append("replayed")

    def record(graph, pool, stream):
        told.append(("records", pool))
        return nullcontext()

    for name, stand_in in {
        "Stream": Stream, "current_stream": Stream, "stream": nullcontext, "CUDAGraph": Graph, "graph": record,
        "graph_pool_handle": object, "device": nullcontext, "current_device": lambda: 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    graphs._recorder.cache_clear()
    yield told
    graphs._recorder.cache_clear()


def pools(said):
    return [pool for what, pool in (each for each in said if isinstance(each, tuple)) if what == "records"]


def test_on_a_gpu_one_call_goes_before_those_that_are_recorded_and_all_graphs_share_memory(said):
    replays = [capture(lambda: said.append("called"), 3, "cuda:0") for _ in range(2)]
    one, other = pools(said)
    assert one is other
    once = ["waits", "called", "is done", ("records", one), *["called"] * 3]
    assert said == once * 2
    replays[0]()
    assert said[-1] == "replayed"


def test_memory_whose_graphs_are_all_gone_is_not_asked_for_again(said):
    """By then torch has given it up, and its allocator asserts that it is in use."""
    kept = capture(lambda: None, 1, "cuda:0")
    capture(lambda: None, 1, "cuda:0")  # goes at once
    del kept
    capture(lambda: None, 1, "cuda:0")
    first, second, third = pools(said)
    assert first is second
    assert third is not first


def test_graphs_come_and_go(device):
    """On a GPU this is where memory that was given up would be asked for."""
    total = torch.zeros(1, device=device)
    for _ in range(3):
        capture(lambda: total.add_(torch.ones(1000, device=device).sum()), 1, device)()
    assert total.item() >= 3000
