"""A short run of a saved configuration on the reference engine: do the figures that it was saved with hold here?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec.structs import replace

from autotune.checked import slowdown
from autotune.conclusion import noise_of
from autotune.confirmation import open_engine
from autotune.engine.interface import Engine
from autotune.errors import BenchmarkError, MemoryLimitError, StoreError
from autotune.evidence import recall
from autotune.host.detect import detect
from autotune.host.hardware_class import hardware_class
from autotune.model.sizes import readable_bytes
from autotune.outlook import Outlook, Prospect
from autotune.records import Check, Configuration, Host, Measured, PartRun, Phase, Result, RunFailure, Workload
from autotune.search.evaluate import serving_time_s
from autotune.search.figures import Runs

LEAST_TOLERANCE = 0.05
"""Relative; what differs by less is the same on any host."""
_LARGEST_DRIFT = 0.10
"""Most that counts of the drift seen while measuring: it is the largest of some dozens of readings."""
_AROUND_S = 0.6
"""Of the budget, for starting the interpreter and for ending the engine."""
_STEPS = 6
"""Decode steps that tell an interval: no prompt is run where there is no time for these as well."""
_LEAST_STEPS = 3
"""Decode steps whatever they take."""


def recheck(
    saved: Result,
    *,
    budget_s: float,
    host: Host | None = None,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """The same result with a new ``check``; its configuration, measurements and runs stay as they are.

    What was run just now is compared, and not added to what the decision rests on: a slow moment would make the next
    check expect it. A prompt is run where there is time for it; else decode steps alone are compared.

    Args:
        saved: A result of this host or of its hardware class.
        budget_s: Wall time for all of it. Bringing in the weights and a few decode steps take what they take.
        host: This host; None: it is detected.
        engine: Runs the configuration; None: the reference engine.
        clock: Tells the time in seconds.

    Raises:
        StoreError: The result is of another hardware class, so its figures aren't this host's.
        MemoryLimitError: The configuration doesn't fit the memory that there is now.
        BenchmarkError: It can't be run.
    """
    started = clock()
    host = host or detect()
    theirs, ours = hardware_class(saved.host), hardware_class(host)
    if theirs != ours:
        raise StoreError(f"the saved figures are of hardware class {theirs}, and this host is of {ours}: tune here")
    workload, noise = saved.workload, noise_of(saved.campaign)
    prospect = Outlook(saved, host).chosen
    _check_memory(saved.model.name, prospect)
    expected = _expected(saved, prospect)

    def left_s() -> float:
        return budget_s - _AROUND_S - (clock() - started)

    with engine or open_engine(recall(saved, host), saved.model) as opened:
        runs = Runs(workload, noise, _run(opened, prospect.configuration, workload, expected, left_s))
    standing = runs.standing(prospect.configuration)
    whole = standing is not None and workload.name != "chat"
    before = _predicted_interval(prospect, whole=whole)
    if saved.confirmed and saved.confirmation is not None:
        before = _interval(Runs(workload, noise, saved.confirmation.runs), prospect.configuration, whole=whole)
    found = _without_prompt(runs, expected, prospect.configuration, workload) if standing is None else standing.measured
    drift = min(saved.campaign.noise.control_drift, _LARGEST_DRIFT)
    now = _interval(runs, prospect.configuration, whole=whole)
    check = Check(
        checked_at=datetime.now(UTC).isoformat(timespec="seconds"),
        spent_s=clock() - started,
        expected=expected,
        found=found,
        tolerance=max(LEAST_TOLERANCE, math.hypot(before, now, drift)),
        holds=True,
        prefill_ran=standing is not None,
    )
    return replace(saved, check=replace(check, holds=slowdown(check, workload.name) <= check.tolerance))


def _check_memory(model: str, prospect: Prospect) -> None:
    for use in prospect.predicted.memory:
        if use.total_bytes > use.available_bytes:
            raise MemoryLimitError(
                f"the configuration saved for {model} needs {readable_bytes(use.total_bytes)} on {use.device}, where "
                f"{readable_bytes(use.available_bytes)} may be used now: `autotune retune` chooses again"
            )


def _expected(saved: Result, prospect: Prospect) -> Measured:
    """What was measured, or where the choice was not run, what is predicted."""
    if saved.confirmed and saved.confirmation is not None and saved.confirmation.chosen is not None:
        return saved.confirmation.chosen
    predicted = prospect.predicted
    return Measured(predicted.tokens_per_s, predicted.tpot_s, predicted.ttft_s, None)


def _run(
    engine: Engine, configuration: Configuration, workload: Workload, expected: Measured, left_s: Callable[[], float]
) -> list[PartRun]:
    """Decode steps, and a prompt where there is time for it.

    Raises:
        BenchmarkError: The configuration can't be run.
    """

    def measure(phase: Phase, at_least: int, at_most_s: float) -> PartRun:
        found = engine.measure(configuration, workload, phase, at_least=at_least, at_most_s=max(0.0, at_most_s))
        if isinstance(found, RunFailure):
            raise BenchmarkError(f"the saved configuration could not be run: {found.message}")
        return found

    failure = engine.prepare(configuration, workload)
    if failure is not None:
        raise BenchmarkError(f"the saved configuration could not be run: {failure.message}")
    # Its first and its last piece once more to warm up; and a prompt can't be stopped half way.
    pieces = min(1.0, 2 * configuration.prefill_chunk / workload.prompt_tokens)
    prompt_s = (1 + pieces) * expected.ttft_s
    steps_s = _STEPS * expected.tpot_s
    decoding_s = left_s() - expected.tpot_s  # the first step warms up
    spare_s = decoding_s - prompt_s - steps_s
    decode = measure("decode", _LEAST_STEPS, decoding_s if spare_s < 0 else steps_s + spare_s / 2)
    prompt_s *= max(1.0, decode.median_s / expected.tpot_s)  # where this is slow, that will be
    return [decode, measure("prefill", 1, left_s() - prompt_s)] if left_s() >= prompt_s else [decode]


def _interval(runs: Runs, configuration: Configuration, *, whole: bool) -> float:
    """Half the width of a 95 % interval, relative: of the time per token of whole requests, or of a decode step."""
    standing = runs.standing(configuration) if whole else None
    if standing is not None:
        return standing.margins_s[0] / standing.costs[0]
    decode = runs.of(runs.halves(configuration)[0])
    assert decode is not None, "both halves of what was chosen by running it were run, and steps just now"
    return runs.margin(decode)


def _predicted_interval(prospect: Prospect, *, whole: bool) -> float:
    """The same of predictions, by what is known of their errors."""
    if whole:
        return prospect.predicted.tokens_per_s / prospect.tokens_per_s_within[0] - 1
    return prospect.tpot_s_within[1] / prospect.predicted.tpot_s - 1


def _without_prompt(runs: Runs, expected: Measured, configuration: Configuration, workload: Workload) -> Measured:
    """The figures where only decode steps were run."""
    decode = runs.of(runs.halves(configuration)[0])
    assert decode is not None
    sequences, tpot_s = configuration.batch_size, decode.median_s
    time_s = serving_time_s(workload, sequences, tpot_s, expected.ttft_s)
    tokens = sequences * workload.output_tokens
    return Measured(tokens / time_s, tpot_s, expected.ttft_s, decode.relative_interval)
