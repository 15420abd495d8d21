"""A synthetic host, its cost model, and an engine that runs configurations by a law: made up, no host was timed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from autotune.costmodel.model import CostModel
from autotune.model.memory import Room
from autotune.records import (
    Configuration,
    Host,
    Layer,
    Limits,
    Model,
    Part,
    PartRun,
    Phase,
    RunFailure,
    Workload,
    part_of,
    relative_median_interval,
)
from autotune.search.workload import batch_grid, chunk_grid
from tests.builders import build_host, build_model, build_workload
from tests.costmodel.synthetic import HEAD, LARGE, LONG, SMALL, WIDE, SyntheticHost, campaign_of
from tests.costmodel.synthetic_gpu import SyntheticGpu, with_gpu

Truth = Callable[[Part], dict[str, float]]
"""Seconds of a part on each device."""


class SyntheticClock:
    """Time that passes only where it is spent; a share of it passes for real, too."""

    def __init__(self, real_share: float = 0.0) -> None:
        self.now_s, self._real_share = 0.0, real_share

    def __call__(self) -> float:
        return self.now_s

    def spend(self, time_s: float) -> None:
        self.now_s += time_s
        if self._real_share:
            time.sleep(time_s * self._real_share)


class SyntheticEngine:
    """Runs parts in the time that a law gives them, give or take some noise.

    Args:
        truth: The law.
        clock: Its time passes.
        noise: Relative standard deviation of a sample.
        seed: Of the noise.
        fails: Says why a configuration can't be run; None: it can.
        prepare_s: What bringing the weights to another placement takes.

    Attributes:
        prepared: All configurations that it was asked to prepare.
        calls: All that it was asked to measure, with what was to be sampled at least.
    """

    name = "synthetic"
    reused_layers = 0

    def __init__(
        self,
        truth: Truth,
        clock: SyntheticClock,
        *,
        noise: float = 0.004,
        seed: int = 0,
        fails: Callable[[Configuration, Phase], str | None] = lambda configuration, phase: None,
        prepare_s: float = 0.2,
    ) -> None:
        self._truth, self._clock, self._noise, self._fails = truth, clock, noise, fails
        self._random, self._prepare_s, self._placed = random.Random(seed), prepare_s, None
        self.prepared: list[Configuration] = []
        self.calls: list[tuple[Configuration, Phase, int]] = []
        self.open = False

    def __enter__(self) -> SyntheticEngine:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def prepare(self, configuration: Configuration, workload: Workload) -> RunFailure | None:
        assert self.open
        self.prepared.append(configuration)
        placement = configuration.device_layers, configuration.head_device
        if placement != self._placed:
            self._clock.spend(self._prepare_s)
            self._placed = placement
        return None

    def measure(
        self, configuration: Configuration, workload: Workload, phase: Phase, *, at_least: int, at_most_s: float
    ) -> PartRun | RunFailure:
        assert self.open
        part = part_of(configuration, workload, phase)
        self.calls.append((configuration, phase, at_least))
        if (kind := self._fails(configuration, phase)) is not None:
            self._clock.spend(self._prepare_s)
            return RunFailure(part, kind, "as the test wants it")
        times, until = self._truth(part), self._clock() + at_most_s
        samples: list[float] = []
        shares: dict[str, list[float]] = {device: [] for device in times}
        while len(samples) < at_least or (self._clock() < until and (relative_median_interval(samples) or 1) > 0.02):
            factor = 1 + abs(self._random.gauss(0, self._noise))
            for device, time_s in times.items():
                shares[device].append(time_s * factor)
            samples.append(sum(times.values()) * factor)
            self._clock.spend(samples[-1])
        return PartRun(part, tuple(samples), {device: tuple(found) for device, found in shares.items()})

    def memory_used(self) -> dict[str, int]:
        return {"cpu": 10**9}

    def overhead_share(self, configuration: Configuration, workload: Workload) -> float | None:
        return 0.05


@dataclass
class Problem:
    """A synthetic host with eight cores, a model, a workload, and what a search needs to know of them."""

    workload: Workload = field(default_factory=lambda: build_workload(prompt_tokens=256, output_tokens=128))
    model: Model = field(
        default_factory=lambda: build_model(layers=(Layer((SMALL, WIDE, WIDE, LONG, LARGE)),) * 4, head=HEAD)
    )
    threads: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    available_bytes: dict[str, int] = field(default_factory=lambda: {"cpu": 2**30})
    """Per device; all but the CPU are GPUs, which take their times from one law."""
    # Slow, so that times are those of large models: a decode step takes tens of milliseconds, a prompt a second.
    law: SyntheticHost = field(
        default_factory=lambda: SyntheticHost(bytes_per_s=2e7, operations_per_s=1e9, sigma=0.1, kappa=0.025)
    )

    def __post_init__(self) -> None:
        campaign, gpus = campaign_of(self.law.outcomes()), [name for name in self.available_bytes if name != "cpu"]
        if gpus:
            gpu = SyntheticGpu(gpus[0], bytes_per_s=1e9, operations_per_s=2e11, launch_s=1e-5)
            campaign = with_gpu(campaign, gpu, gpu.outcomes(self.model), *gpus[1:])
        self.cost_model = CostModel(campaign, {"cpu": "sum", **dict.fromkeys(gpus[:1], "waves")})
        limits = Limits(tuple(range(8)), None, None, 8, "online CPUs", 2)
        self.host: Host = replace(build_host(), limits=limits)
        self.room = Room(self.available_bytes, dict.fromkeys(self.available_bytes, 10**6))
        self.default = Configuration({"cpu": len(self.model.layers)}, "cpu", 4, 4, 1, self.chunks[-1])

    @property
    def batches(self) -> tuple[int, ...]:
        return batch_grid(self.workload.max_batch)

    @property
    def chunks(self) -> tuple[int, ...]:
        return chunk_grid(self.workload.prompt_tokens)

    def truth(self, bias: Callable[[Part], float] = lambda part: 1.0) -> Truth:
        """What the cost model predicts, times a bias that it doesn't know of."""

        def times(part: Part) -> dict[str, float]:
            predicted = self.cost_model.predict(self.model, part, corrected=False)
            return {device: time_s * bias(part) for device, time_s in predicted.items()}

        return times

    def arguments(self, **overrides: object) -> dict[str, object]:
        """Of ``search``, but for the engine."""
        return {
            "cost_model": self.cost_model,
            "model": self.model,
            "workload": self.workload,
            "host": self.host,
            "room": self.room,
            "default": self.default,
            "threads": self.threads,
            "batches": self.batches,
            "chunks": self.chunks,
            "noise": 0.01,
            "budget_s": 20.0,
            "identity": "synthetic",
            **overrides,
        }

    def every(self) -> Iterable[Configuration]:
        """All configurations on the CPU."""
        for decode in self.threads:
            for prefill in self.threads:
                for batch in self.batches:
                    for chunk in self.chunks:
                        yield replace(
                            self.default,
                            decode_threads=decode,
                            prefill_threads=prefill,
                            batch_size=batch,
                            prefill_chunk=chunk,
                        )

    def costs(self, configuration: Configuration, truth: Truth) -> tuple[float, float]:
        """True costs of a configuration, most important first."""
        workload, batch = self.workload, configuration.batch_size
        tpot_s, ttft_s = (
            sum(truth(part_of(configuration, workload, phase)).values()) for phase in ("decode", "prefill")
        )
        if workload.name == "chat":
            return tpot_s, ttft_s
        output = workload.output_tokens
        return (batch * ttft_s + (output - 1) * tpot_s) / (batch * output), ttft_s
