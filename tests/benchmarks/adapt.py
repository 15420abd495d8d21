"""Where constant metrics lead, and what observing costs: ``python -m tests.benchmarks.adapt``.

Prints Markdown. First, for results of a measured CPU and of two synthetic hosts with a GPU, and ten metrics each: the
configurations that a tuner goes through until it settles, and why. Two more begin where two observations of full memory
have led. Throughput is given as a share of what is expected of the chosen configuration. Then times of single calls.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

from msgspec.structs import replace

from autotune.adapt.loading import get_adaptive_device_config
from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.tuner import AdaptiveTuner
from autotune.host import fingerprint
from autotune.model import source
from autotune.records import Configuration, Result
from autotune.store import cache
from tests import replayed

QUIET = 24
"""Observations in a row that change nothing, after which a tuner counts as settled: patience asks for less."""

CALLS = 2000
MODEL = "bitnet-b1.58-2B-4T"


class Start(NamedTuple):
    """Metrics to begin with; throughput relative to what is expected."""

    throughput: float
    memory: float
    gpu: float | None
    cpu: float
    pressed_before: int = 0
    """Observations of full memory before."""

    def metrics(self, expected_tokens_per_s: float) -> PerformanceMetrics:
        return PerformanceMetrics(self.throughput * expected_tokens_per_s, self.memory, self.gpu, self.cpu)

    def __str__(self) -> str:
        gpu = "-" if self.gpu is None else f"{self.gpu:.2f}"
        before = self.pressed_before * "0.95, "
        return f"{self.throughput:.2f} | {before}{self.memory:.2f} | {gpu} | {self.cpu:.2f}"


STARTS = (
    Start(1.0, 0.70, 0.9, 0.5),
    Start(1.0, 0.95, 0.9, 0.5),
    Start(1.0, 0.91, None, 0.5),
    Start(1.0, 0.90, 0.9, 0.5),
    Start(1.0, 0.30, 0.9, 0.5),
    Start(1.0, 0.30, 0.2, 0.5),
    Start(0.1, 0.70, 0.2, 0.3),
    Start(0.1, 0.70, 0.2, 0.9),
    Start(0.0, 0.10, 0.0, 0.0),
    Start(0.5, 1.00, 0.1, 1.0),
    Start(0.5, 0.20, 0.9, 0.5, pressed_before=2),
    Start(0.5, 0.49, 0.9, 0.5, pressed_before=2),
)
RESULTS: dict[str, Callable[[], Result]] = {
    "CPU (measured)": replayed.on_cpu,
    "GPU (synthetic)": replayed.on_gpu,
    "GPU, chat (synthetic)": lambda: replayed.on_gpu("chat"),
    "hybrid (synthetic)": replayed.hybrid,
}


def main() -> None:
    """Print the traces, then the times."""
    for name, make in RESULTS.items():
        for line in traces(name, make()):
            print(line)
    for line in times():
        print(line)


def traces(name: str, result: Result) -> Iterator[str]:
    """A table per result."""
    tuner = AdaptiveTuner(result)
    expected = result.decision.chosen.predicted.tokens_per_s
    yield f"\n### {name}: {result.model.name}, {result.workload.name}, begins with {short(tuner.configuration)}\n"
    yield "| throughput | memory | GPU | CPU | observations | steps | ends with | why each step; last, why no more |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    for start in STARTS:
        tuner.reset()
        for _ in range(start.pressed_before):
            tuner.observe(start._replace(memory=0.95).metrics(expected))
        way, whys, last, observations, unchanged = [tuner.configuration], [], "", 0, 0
        while unchanged < QUIET:
            proposal = tuner.observe(start.metrics(expected))
            observations, unchanged, last = observations + 1, unchanged + 1, proposal.why
            if proposal.changed:
                assert proposal.configuration not in way
                way.append(proposal.configuration)
                whys.append(proposal.why)
                unchanged = 0
        why = "<br>".join([*(f"{number}. {text}" for number, text in enumerate(whys, 1)), last])
        yield f"| {start} | {observations - QUIET} | {len(whys)} | {short(way[-1])} | {why} |"


def short(configuration: Configuration) -> str:
    """Batch, layers, head and chunk."""
    layers = " + ".join(f"{count} {device}" for device, count in configuration.device_layers.items())
    chunk = configuration.prefill_chunk
    return f"batch {configuration.batch_size}, {layers}, head {configuration.head_device}, chunk {chunk}"


def times() -> Iterator[str]:
    """Medians, and the longest of many calls, which changes of configuration are among."""
    yield "\n| call | median | 99 % | longest |"
    yield "| --- | ---: | ---: | ---: |"
    for name, make in RESULTS.items():
        began = time.perf_counter()
        tuner = AdaptiveTuner(make())
        made_s = time.perf_counter() - began
        turns = turning(make().decision.chosen.predicted.tokens_per_s)
        taken_s = timed(lambda tuner=tuner, turns=turns: tuner.observe(next(turns)))  # type: ignore[misc]
        yield f"| `observe`, {name} (made in {made_s * 1e3:.0f} ms) | {microseconds(taken_s)} |"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOTUNE_CACHE"] = folder
        cache.write(as_ours(replayed.on_cpu()), {})
        turns = turning(replayed.on_cpu().decision.chosen.predicted.tokens_per_s)
        began = time.perf_counter()
        get_adaptive_device_config(MODEL, next(turns))
        first_s = time.perf_counter() - began
        taken_s = timed(lambda: get_adaptive_device_config(MODEL, next(turns)))
        yield f"| `get_adaptive_device_config` (the first {first_s * 1e3:.0f} ms) | {microseconds(taken_s)} |"


def turning(expected_tokens_per_s: float) -> Iterator[PerformanceMetrics]:
    """Metrics that call for changes, in turn and for ever."""
    while True:
        for start in STARTS:
            for _ in range(5):
                yield start.metrics(expected_tokens_per_s)


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each of many calls, ascending."""
    taken_s = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - began)
    return sorted(taken_s)


def microseconds(taken_s: list[float]) -> str:
    """Median, 99th percentile and longest."""
    found = median(taken_s), taken_s[int(0.99 * len(taken_s))], taken_s[-1]
    return " | ".join(f"{time_s * 1e6:.0f} µs" for time_s in found)


def as_ours(result: Result) -> Result:
    """A recorded host's result, filed as if it were this host's."""
    found = replace(result.host.fingerprint, cheap=fingerprint.cheap())
    model = replace(result.model, source_digest=source.digest(source.resolve(MODEL), None))
    return replace(result, host=replace(result.host, fingerprint=found), model=model)


if __name__ == "__main__":
    main()
