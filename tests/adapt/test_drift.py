"""All observations here are synthetic: a law's ratio times seeded noise."""

from __future__ import annotations

import math
import random

import pytest

from autotune.adapt.drift import LEARNT_FROM, Learnt, Watch

NOISE = 0.02


def observe(watch: Watch, ratio: float, times: int, *, spread: float = 0.0, seed: int = 0) -> list[bool]:
    """Busy observations with log-normal noise; whether each was told as a slow-down."""
    rng = random.Random(seed)
    told = []
    for _ in range(times):
        watch.observe(ratio * math.exp(rng.gauss(0.0, spread)), busy=True)
        told.append(watch.slow_down is not None)
    return told


@pytest.mark.parametrize("spread", [0.0, NOISE, 0.05, 0.1])
def test_false_alarms_are_rare(spread: float) -> None:
    """In 10 runs of 10,000 observations of a healthy model, with the recorded noise and with up to five times that."""
    alarms = [any(observe(Watch(NOISE), 0.8, 10_000, spread=spread, seed=seed)) for seed in range(10)]
    assert sum(alarms) == 0


@pytest.mark.parametrize("spread", [0.0, NOISE, 0.05, 0.1])
def test_a_fifth_less_speed_is_told_soon(spread: float) -> None:
    """After eight observations with the recorded noise, and within 60 where the noise is half as large as the fall."""
    for seed in range(20):
        watch = Watch(NOISE)
        assert not any(observe(watch, 0.9, 200, spread=spread, seed=seed))
        told = observe(watch, 0.9 * 0.8, 200, spread=spread, seed=100 + seed)
        assert 4 <= told.index(True) + 1 <= (8 if spread <= NOISE else 60)
        assert watch.slow_down == pytest.approx(0.2, abs=0.02 + spread)


def test_a_slower_runtime_is_no_slow_down() -> None:
    """What is 40 % slower than predicted from the beginning, and stays so, differs by its runtime."""
    watch = Watch(NOISE)
    assert not any(observe(watch, 0.6, 1000, spread=NOISE))
    assert watch.ratio == pytest.approx(0.6, rel=0.03)


def test_a_single_odd_observation_is_not_believed() -> None:
    """Not even seven in a row, nor one in ten for long: neither is sustained."""
    watch = Watch(NOISE)
    observe(watch, 1.0, 100)
    assert not any(observe(watch, 0.01, 7))
    for _ in range(200):
        assert not any(observe(watch, 1.0, 9))
        assert not any(observe(watch, 0.01, 1))
    assert watch.ratio is not None
    assert watch.ratio > 0.6


def test_small_changes_are_not_worth_telling() -> None:
    """4 % for ever: tuning again wouldn't pay."""
    watch = Watch(0.001)
    observe(watch, 1.0, 100, spread=0.001)
    assert not any(observe(watch, 0.96, 5000, spread=0.001, seed=1))


def test_recovery_is_seen_and_takes_as_long_as_the_alarm() -> None:
    """And until then it counts as slow, so the verdict doesn't flicker."""
    watch = Watch(NOISE)
    observe(watch, 1.0, 100)
    assert observe(watch, 0.7, 1000)[-1]
    told = observe(watch, 1.0, 100)
    assert 8 <= told.index(False) <= 20
    assert not any(told[told.index(False) :])


def test_growing_faster_is_no_alarm() -> None:
    """Nobody tunes again for that."""
    watch = Watch(NOISE)
    observe(watch, 1.0, 100)
    assert not any(observe(watch, 2.0, 1000))


def test_idle_devices_say_nothing_of_the_speed() -> None:
    """Few requests lower the ratio, and raise no alarm."""
    watch = Watch(NOISE)
    observe(watch, 1.0, 100)
    for _ in range(100):
        watch.observe(0.1, busy=False)
    assert watch.slow_down is None
    assert watch.ratio == pytest.approx(0.1, rel=0.05)


def test_another_configuration_has_a_ratio_of_its_own() -> None:
    """Of a healthy model the reference is learnt anew; a slow one keeps it, for a change of batch is no cure."""
    watch = Watch(NOISE)
    assert watch.ratio is None
    observe(watch, 1.0, 100)
    watch.restart()
    assert watch.ratio is None
    assert not any(observe(watch, 0.7, 500))
    assert observe(watch, 0.5, 50)[-1]
    watch.restart()
    assert watch.slow_down is not None
    assert all(observe(watch, 0.5, 50))
    assert not observe(watch, 0.7, 50)[-1]


def test_what_is_learnt_can_be_handed_on() -> None:
    """At any time: a second watch that takes over tells what the first one would have told."""
    for before in (0, 1, LEARNT_FROM - 1, LEARNT_FROM, 60):
        whole, first = Watch(NOISE), Watch(NOISE)
        observe(whole, 1.0, before, spread=NOISE)
        observe(first, 1.0, before, spread=NOISE)
        second = Watch(NOISE, first.learnt)
        for ratio in (1.0, 0.8, 0.8, 1.0):
            assert observe(second, ratio, 30, spread=NOISE) == observe(whole, ratio, 30, spread=NOISE)
        assert second.learnt == whole.learnt


def test_ratios_beyond_all_reason_are_survived() -> None:
    """A first observation of almost nothing, or of far too much, gives a number all the same."""
    for ratio in (0.0, 5e-324, 1e-300, 1e300):
        watch = Watch(NOISE)
        observe(watch, ratio, 100)
        assert watch.ratio is not None
        assert math.isfinite(watch.ratio)
        assert Watch(NOISE, watch.learnt).learnt == watch.learnt != Learnt()
