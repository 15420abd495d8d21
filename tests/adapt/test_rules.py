"""Which move is asked for, on synthetic configurations whose moves are given: no cost model takes part."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.moves import Kind, Move, Stop
from autotune.adapt.rules import GivenUp, History, Verdict, judge
from autotune.records import Configuration, DeviceConfig
from autotune.search.space import Point

HERE, THERE, FURTHER = (Point(placement, 0, 0, 0, 0) for placement in range(3))


def move(kind: Kind, **changes: Any) -> Move:
    usual = Move(kind, THERE, 8, 150.0, 1.5, 1.5, 0.1, -0.1)
    if kind == "less":
        usual = Move(kind, THERE, 2, 60.0, 0.6, 0.6, -0.05, 0.1)
    return usual._replace(**changes)


def stop(*moves: Move, alone: bool = False, **changes: Any) -> Stop:
    """A batch of 4 that gives 100 tokens/s, on the CPU or on a GPU alone."""
    device = "cuda:0" if alone else "cpu"
    whys: dict[Kind, str] = {"less": "LESS", "more": "MORE", "back": "BACK", "split": "SPLIT"}
    return Stop(
        configuration=Configuration({device: 2}, device, 2, 2, 4, 128),
        device_config=DeviceConfig("GpuOnly" if alone else "CpuOnly", 2, None, 4),
        tokens_per_s=100.0,
        fullest=device,
        on_gpus=alone,
        on_gpus_alone=alone,
        own_cpu_share=0.5,
        noise=0.02,
        moves={one.kind: one for one in moves},
        why_not=whys,
    )._replace(**changes)


def verdict(
    here: Stop,
    pressure: float = 0.7,
    gpu: float | None = None,
    cpu: float = 0.5,
    ratio: float | None = 1.0,
    history: History | None = None,
    **others: Stop,
) -> Verdict:
    metrics = PerformanceMetrics(100.0, pressure, gpu, cpu)
    stops = {HERE: here, THERE: others.get("there", stop()), FURTHER: others.get("further", stop())}
    return judge(stops, HERE, metrics, ratio, history or History())


def test_pressure_gives_memory_up_at_once() -> None:
    """Above 90 %, and not at it; whatever it costs, and whatever else could be done."""
    here = stop(move("less"), move("more"), move("back"))
    assert verdict(here, 0.9).move is None
    found = verdict(here, 0.91)
    assert found.move == move("less")
    assert found.patience == 0
    assert found.why == (
        "memory pressure of 91 % is above 90 %, and this frees 10.0 % of the memory on cpu, for 40.0 % of the speed"
    )


def test_a_pressure_just_above_the_limit_is_said_exactly() -> None:
    """90 % above 90 % would be nonsense."""
    assert verdict(stop(move("less")), 0.904).why.startswith("memory pressure of 90.4 % is above 90 %")


def test_pressure_with_nothing_left_to_give_is_said() -> None:
    """A loader that could do something else should know."""
    found = verdict(stop(move("more")), 0.95)
    assert (found.move, found.why) == (None, "memory pressure of 95 % is above 90 %, but LESS")


def test_layers_move_as_far_as_is_enough_at_once() -> None:
    """Each move would load layers again; halving the batch goes step by step, for it is cheap."""
    further = stop(move("less", to=FURTHER, batch_size=4, speedup=0.5, freed_share=0.03, added_share=0.02))
    here = stop(move("less", batch_size=4, speedup=0.8, freed_share=0.02, added_share=0.01))
    enough = verdict(here, 0.905, there=stop(move("less", to=FURTHER, batch_size=4, freed_share=0.1)), further=further)
    assert enough.move is not None
    assert (enough.move.to, enough.move.freed_share) == (FURTHER, pytest.approx(0.12))
    assert verdict(stop(move("less", batch_size=4, freed_share=0.2)), 0.95, there=further).move.to == THERE
    both = verdict(here, 0.99, there=further).move
    assert (both.to, both.speedup) == (FURTHER, pytest.approx(0.4))
    assert (both.freed_share, both.added_share) == (pytest.approx(0.05), pytest.approx(0.03))
    assert verdict(stop(move("less", freed_share=0.01)), 0.99, there=further).move.to == THERE


def test_room_doubles_the_batch_where_that_is_faster() -> None:
    """Below 50 %; whether it is faster, fits and keeps limits was found before, else there is no such move."""
    assert verdict(stop(move("more")), 0.5).move is None
    found = verdict(stop(move("more")), 0.49)
    assert (found.move, found.patience) == (move("more"), 1)
    assert found.why == "memory pressure of 49 % is below 50 %, and it is predicted to be 50.0 % faster"
    assert verdict(stop(), 0.3).why == "memory pressure of 30 % is below 50 %, but MORE"


def test_what_would_bring_the_pressure_near_the_limit_is_left() -> None:
    """85 % is as far as a step may lead."""
    assert verdict(stop(move("more", added_share=0.44)), 0.4).move is not None
    found = verdict(stop(move("more", added_share=0.46)), 0.4)
    assert found.move is None
    assert "would bring it to 86 %, too near the 90 %" in found.why


def test_what_was_given_up_is_taken_again_only_with_care() -> None:
    """Counting what the pressure fell by then, where that is believable, and twice as patiently each time."""
    grow = stop(move("more", added_share=0.2))
    for fell_by, allowed in ((None, True), (0.1, True), (0.35, True), (0.37, False), (0.9, False)):
        history = History((GivenUp(8, 0.95, fell_by),))
        found = verdict(grow, 0.49, history=history)
        assert (found.move is not None) == allowed
        assert not allowed or found.patience == 2
    assert verdict(grow, 0.3, history=History((GivenUp(8, 0.95, 0.9),))).move is not None, "at most twice the plan"
    assert verdict(grow, 0.49, history=History((GivenUp(16, 0.95, 0.9),))).patience == 1, "that was a larger batch"
    assert verdict(grow, 0.1, history=History((GivenUp(8, 0.95, 0.1),), times=3)).patience == 16


def test_memory_given_up_is_remembered_with_what_that_brought() -> None:
    """One entry per batch size, the latest; a fall is a fall, and no rise."""
    here, history = stop(move("less")), History()
    history = history.seeing(0.95).after(move("less"), here, 0.95)
    assert history == History((GivenUp(4, 0.95, None),))
    assert history.seeing(0.8).given_up[0].fell_by == pytest.approx(0.15)
    assert history.seeing(0.97).given_up[0].fell_by == 0.0
    assert history.seeing(0.8).seeing(0.1) == history.seeing(0.8)
    again = history.seeing(0.8).after(move("more"), here, 0.3).after(move("less"), here, 0.92)
    assert again == History((GivenUp(4, 0.92, None),), times=1)
    assert again.after(move("less"), here, 0.92).times == 1, "only after it was taken again"


def test_the_way_back_is_open_after_memory_was_given_up() -> None:
    """Where the batch can't grow; and it is not for what the tuner chose."""
    here, given_up = stop(move("back", batch_size=4)), History((GivenUp(4, 0.95, 0.1),))
    assert verdict(here, 0.3).move is None
    found = verdict(here, 0.3, history=given_up)
    assert found.move is not None
    assert found.move.kind == "back"
    sooner = stop(move("back", batch_size=4, speedup=1.0, ttft_speedup=2.0))
    assert verdict(sooner, 0.3, history=given_up).why.endswith(
        "to be as fast and to give the first token 50.0 % sooner"
    )
    both = stop(move("more"), move("back"))
    assert verdict(both, 0.3, history=given_up).move == move("more")
    tight = stop(move("more", added_share=0.9), move("back", added_share=0.1))
    assert verdict(tight, 0.3, history=given_up).move == move("back", added_share=0.1)
    assert verdict(here, 0.6, history=given_up).move is None


def test_an_idle_gpu_is_helped_by_the_cpu_where_that_is_faster() -> None:
    """Below 30 %, on GPUs alone."""
    faster = move("split", speedup=1.03)
    assert verdict(stop(faster, alone=True), gpu=0.3).move is None
    assert verdict(stop(faster, alone=True), gpu=None).move is None
    assert verdict(stop(faster), gpu=0.1).move is None
    found = verdict(stop(faster, alone=True), gpu=0.29)
    assert found.move == faster
    assert (
        found.why
        == "the GPU is busy for only 29 % of the time, and layers on the CPU as well are predicted to be 3.0 % faster"
    )
    assert verdict(stop(move("split", speedup=1.01), alone=True), gpu=0.1).move is None, "within the noise"
    assert "SPLIT" in verdict(stop(alone=True), gpu=0.1).why


def test_a_slower_split_is_for_what_stays_far_behind() -> None:
    """It must beat what is observed, and the CPU must have time for it."""
    slower = stop(move("split", speedup=0.8, tokens_per_s=80.0), alone=True)
    assert verdict(slower, gpu=0.1, ratio=0.5).move is not None
    assert "if it is the GPU that is slow" in verdict(slower, gpu=0.1, ratio=0.5).why
    for ratio in (None, 0.7, 1.0):
        assert verdict(slower, gpu=0.1, ratio=ratio).why.endswith("are not predicted to be faster")
    busy = verdict(slower, gpu=0.1, ratio=0.5, cpu=0.71)
    assert busy.move is None
    assert "the CPU is busy for 71 %" in busy.why
    beaten = verdict(stop(move("split", speedup=0.8, tokens_per_s=50.0), alone=True), gpu=0.1, ratio=0.5)
    assert beaten.move is None
    assert "not even than what is observed" in beaten.why


def test_a_split_takes_no_memory_that_is_short() -> None:
    """The CPU's, which layers then take."""
    found = verdict(stop(move("split", added_share=0.2), alone=True), 0.7, gpu=0.1)
    assert found.move is None
    assert "near 90 %" in found.why


def test_split_and_way_back_exclude_each_other() -> None:
    """Whichever was made first with a batch, the other would undo it."""
    here = stop(move("split"), move("back", batch_size=4), alone=True)
    given_up = History((GivenUp(4, 0.95, 0.1),))
    after_back = given_up.after(move("back"), here, 0.3)
    after_split = given_up.after(move("split"), here, 0.3)
    assert "just been moved back" in verdict(here, gpu=0.1, history=after_back).why
    assert verdict(here, 0.3, gpu=0.9, history=after_split).move is None
    for history in (after_back, after_split):
        assert history.after(move("more"), here, 0.3).last_here is None
        assert history.after(move("less"), here, 0.95).last_here is None


def test_every_verdict_says_why() -> None:
    """Also where nothing changes, and whatever is unknown."""
    stops = (stop(), stop(alone=True), stop(move("less"), move("more"), move("split"), alone=True))
    for here, pressure, gpu, ratio in itertools.product(stops, (0.1, 0.7, 0.95), (None, 0.1, 0.9), (None, 0.1, 1.0)):
        why = verdict(here, pressure, gpu, ratio=ratio).why
        assert f"memory pressure of {pressure * 100:.0f} %" in why or "the GPU is busy" in why
        assert "\n" not in why
