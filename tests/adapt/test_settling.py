"""A tuner settles: by the order that its moves keep, under constant metrics, and in closed loops (all synthetic)."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.moves import RELIEFS, Moves
from autotune.adapt.tuner import AdaptiveTuner
from autotune.outlook import Outlook
from autotune.records import Configuration
from tests.adapt.results import MAKERS

PRESSURES = (0.0, 0.3, 0.49, 0.5, 0.7, 0.84, 0.9, 0.91, 1.0)
UTILIZATIONS = (None, 0.0, 0.29, 0.3, 1.0)
RATIOS = (0.0, 0.1, 0.69, 1.0, 2.0)
BUSY_CPUS = (0.0, 0.5, 1.0)

SHARES = st.floats(0.0, 1.0)
METRICS = st.builds(
    PerformanceMetrics,
    throughput_tokens_per_s=st.floats(0.0, 1e5),
    memory_pressure=SHARES | st.sampled_from([0.2, 0.95]),
    gpu_utilization=st.none() | SHARES | st.just(0.1),
    cpu_utilization=SHARES,
)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def settle(tuner: AdaptiveTuner, metrics: PerformanceMetrics, *, quiet: int = 3) -> list[Configuration]:
    """The configurations that constant metrics lead through, all different, until so many observations change nothing.

    What happens next depends on what was asked for in the last observations, and on how often memory was given up.
    """
    seen, unchanged = [tuner.configuration], 0
    while unchanged < quiet:
        proposal = tuner.observe(metrics)
        assert proposal.changed == (proposal.configuration != seen[-1])
        assert proposal.configuration == tuner.configuration
        unchanged += 1
        if proposal.changed:
            assert proposal.configuration not in seen
            seen.append(proposal.configuration)
            unchanged = 0
    assert len(seen) <= 60
    return seen


# The proof's premises


@pytest.mark.parametrize("name", MAKERS)
def test_every_move_goes_down_in_its_kinds_order(name: str) -> None:
    """The premises of the proof, for all configurations that can be reached: see the module's docstring."""
    result = MAKERS[name]()
    moves = Moves(result)
    outlook = Outlook(result, batches={stop.configuration.batch_size for stop in moves.stops.values()})
    prospects = {repr(one.configuration): outlook.at(one.configuration) for one in moves.stops.values()}

    def share(configuration: Configuration) -> float:
        holding = (*configuration.device_layers, configuration.head_device)
        memory = prospects[repr(configuration)].predicted.memory
        return max(use.total_bytes / use.available_bytes for use in memory if use.device in holding)

    def cost(configuration: Configuration) -> tuple[float, float]:
        predicted = prospects[repr(configuration)].predicted
        first = predicted.tpot_s if result.workload.name == "chat" else 1 / predicted.tokens_per_s
        return first, predicted.ttft_s

    def alone(configuration: Configuration) -> bool:
        return "cpu" not in (*configuration.device_layers, configuration.head_device)

    assert moves.stops
    for stop in moves.stops.values():
        here = stop.configuration
        for kind, move in stop.moves.items():
            there = moves.stops[move.to].configuration
            if kind == "less" and here.batch_size > 1:
                assert there.batch_size == here.batch_size // 2
                assert share(there) < share(here)
            elif kind == "less":
                assert there.batch_size == 1
                assert share(there) <= share(here) - RELIEFS[-1] + 1e-12
            elif kind == "more":
                assert there.batch_size in (2 * here.batch_size, result.workload.max_batch)
                assert there.batch_size > here.batch_size
            elif kind == "back":
                assert there.batch_size == here.batch_size
            else:
                assert there.batch_size == here.batch_size
                assert alone(here)
                assert not alone(there)
            if kind in ("more", "back"):
                assert cost(there) < cost(here)
                assert not prospects[repr(there)].obstacles


# Constant metrics


def test_constant_metrics_settle_all_over_a_grid(tuner: AdaptiveTuner) -> None:
    """From the chosen configuration, around all thresholds, whatever is observed."""
    start = tuner.configuration
    for pressure, gpu, ratio, cpu in itertools.product(PRESSURES, UTILIZATIONS, RATIOS, BUSY_CPUS):
        tuner.reset()
        assert tuner.configuration == start
        settle(tuner, PerformanceMetrics(ratio * 100, pressure, gpu, cpu))


@pytest.mark.parametrize("name", MAKERS)
def test_constant_metrics_settle_from_every_configuration(name: str, tuners: dict[str, AdaptiveTuner]) -> None:
    """That can be reached at all, as if it had been chosen."""
    tuner = tuners[name]
    for stop in Moves(MAKERS[name]()).stops.values():
        for pressure, gpu, throughput in itertools.product((0.2, 0.6, 0.95), (None, 0.1, 0.9), (0.0, 1.0, 1e4)):
            tuner.reset(stop.configuration)
            settle(tuner, PerformanceMetrics(throughput, pressure, gpu, 0.3))


@SLOW
@given(past=st.lists(METRICS, max_size=40), metrics=METRICS)
@example(past=[PerformanceMetrics(1.0, 0.95, 0.1, 0.1)] * 3, metrics=PerformanceMetrics(1.0, 0.2, 0.1, 0.1))
@example(past=[PerformanceMetrics(1.0, 0.6, 0.1, 0.1)] * 3, metrics=PerformanceMetrics(1.0, 0.2, 0.1, 0.1))
def test_constant_metrics_settle_after_any_past(
    tuner: AdaptiveTuner, past: list[PerformanceMetrics], metrics: PerformanceMetrics
) -> None:
    """Also where memory was given up and taken again, or a split was made, before."""
    tuner.reset()
    for one in past:
        tuner.observe(one)
    settle(tuner, metrics, quiet=2**8)


# Metrics that answer


@functools.cache
def truth(name: str) -> Callable[[bytes], tuple[float, float]]:
    """For a configuration's JSON: the share of the fullest memory that it takes, and its tokens/s."""
    result = MAKERS[name]()
    outlook = Outlook(result, batches=[batch for shift in range(9) if (batch := result.workload.max_batch >> shift)])

    @functools.cache
    def of(configuration: bytes) -> tuple[float, float]:
        predicted = outlook.at(msgspec.json.decode(configuration, type=Configuration)).predicted
        return max(use.total_bytes / use.available_bytes for use in predicted.memory), predicted.tokens_per_s

    return of


class Loop:
    """A synthetic host: pressure follows the bytes of the plan, throughput the cost model, both with seeded noise.

    Args:
        name: Of the result, whose outlook is what is true here, but for the factors.
        others: Share of the memory that others use.
        gain: Bytes really used per byte planned.
        speed: True over expected throughput.
        noise: Of both, relative.
        gpu: The GPU's utilisation.
        seed: Of the noise.
    """

    def __init__(
        self, name: str, *, others: float, gain: float, speed: float, noise: float, gpu: float | None, seed: int
    ) -> None:
        self._truth, self._rng = truth(name), random.Random(seed)
        self._others, self._gain, self._speed, self._noise, self._gpu = others, gain, speed, noise, gpu

    def run(self, configuration: Configuration) -> PerformanceMetrics:
        """What is observed of a configuration."""
        share, tokens_per_s = self._truth(msgspec.json.encode(configuration))
        pressure = self._others + self._gain * share + self._rng.gauss(0.0, self._noise)
        return PerformanceMetrics(
            throughput_tokens_per_s=tokens_per_s * self._speed * math.exp(self._rng.gauss(0.0, self._noise)),
            memory_pressure=min(1.0, max(0.0, pressure)),
            gpu_utilization=self._gpu,
            cpu_utilization=0.4,
        )


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("gain", "speed", "gpu"), [(1.0, 1.0, 0.9), (1.9, 0.5, 0.1), (0.5, 1.0, None)])
def test_a_closed_loop_settles(
    name: str, gain: float, speed: float, gpu: float | None, tuners: dict[str, AdaptiveTuner]
) -> None:
    """Whatever others use and however far the plan is off, up to twice: down, up to what is safe, and then quiet."""
    tuner = tuners[name]
    for noise, (seed, others) in itertools.product((0.0, 0.01), enumerate((0.0, 0.2, 0.4, 0.6, 0.8))):
        tuner.reset()
        loop = Loop(name, others=others, gain=gain, speed=speed, noise=noise, gpu=gpu, seed=seed)
        changes, batches = 0, [tuner.configuration.batch_size]
        for _ in range(300):
            changes += tuner.observe(loop.run(tuner.configuration)).changed
            batches.append(tuner.configuration.batch_size)
        turns = [batch for batch, _ in itertools.groupby(batches)]
        shrank = [later < earlier for earlier, later in itertools.pairwise(turns)]
        assert shrank == sorted(shrank, reverse=True), "it grows again after it shrank, and then stays"
        later = [tuner.observe(loop.run(tuner.configuration)).changed for _ in range(300)]
        assert sum(later) <= (1 if noise else 0), "only noise at the very limit can do that"
        assert changes <= 20


@pytest.mark.parametrize("name", MAKERS)
def test_a_plan_that_is_far_too_small_is_not_tried_for_ever(name: str, tuners: dict[str, AdaptiveTuner]) -> None:
    """Where a step really takes ten times the memory that is planned, it is tried ever more rarely."""
    tuner = tuners[name]
    loop = Loop(name, others=-0.2, gain=10.0, speed=1.0, noise=0.02, gpu=0.9, seed=1)
    tuner.reset()
    turns, down = 0, True
    batch = tuner.configuration.batch_size
    for _ in range(5_000):
        proposal = tuner.observe(loop.run(tuner.configuration))
        if proposal.configuration.batch_size != batch:
            turns += down != (proposal.configuration.batch_size < batch)
            down, batch = proposal.configuration.batch_size < batch, proposal.configuration.batch_size
    assert turns <= 2 * math.log2(5_000)


def test_an_adversary_is_followed_ever_more_slowly(tuner: AdaptiveTuner) -> None:
    """Memory that is free while little is used, and gone as soon as more is: growing takes twice as long each time."""
    grew, pressed = [], True
    for observation in range(5_000):
        proposal = tuner.observe(PerformanceMetrics(100.0, 0.95 if pressed else 0.1, 0.9, 0.3))
        if proposal.changed and not pressed:
            grew.append(observation)
        if not proposal.changed:
            pressed = pressed and "nothing is left" not in proposal.why
        elif not pressed:
            pressed = True
    waits = [later - earlier for earlier, later in itertools.pairwise(grew)]
    assert len(grew) <= math.log2(5_000)
    assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(waits))
