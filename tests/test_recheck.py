"""The short run of a saved configuration, on an engine whose times follow a law; results replayed from recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from autotune.checked import faster, lines, slowdown
from autotune.errors import BenchmarkError, MemoryLimitError, StoreError
from autotune.outlook import Outlook
from autotune.recheck import LEAST_TOLERANCE, recheck
from autotune.records import Check, Configuration, Measured, Part, PartRun, Phase, Result, RunFailure, Workload, part_of
from autotune.search.evaluate import serving_time_s
from tests.builders import build_confirmation
from tests.replayed import hybrid, on_cpu
from tests.search.synthetic_engine import SyntheticClock, SyntheticEngine

AMPLE_S = 60.0


def measured_of(result: Result, tpot_s: float, ttft_s: float) -> Measured:
    """The figures that follow from two times."""
    workload, sequences = result.workload, result.decision.chosen.configuration.batch_size
    tokens = sequences * workload.output_tokens
    return Measured(tokens / serving_time_s(workload, sequences, tpot_s, ttft_s), tpot_s, ttft_s, None)


def confirmed_of(result: Result) -> Result:
    """The same as if the choice had been run, and took a quarter more time than predicted (synthetic samples)."""
    configuration, workload = result.decision.chosen.configuration, result.workload
    predicted = result.decision.chosen.predicted
    times_s = {"decode": 1.25 * predicted.tpot_s, "prefill": 1.25 * predicted.ttft_s}
    phases: tuple[Phase, Phase] = "decode", "prefill"
    runs = [
        PartRun(part_of(configuration, workload, phase), (times_s[phase],) * 8, {"cpu": (times_s[phase],) * 8})
        for phase in phases
    ]
    confirmation = build_confirmation(workload, configuration, configuration)
    chosen = measured_of(result, times_s["decode"], times_s["prefill"])
    return replace(result, confirmation=replace(confirmation, runs=tuple(runs), chosen=chosen))


def quiet(result: Result) -> Result:
    """The same as if it had been measured on a host without noise or drift."""
    noise = replace(result.campaign.noise, median_relative_interval=0.005, control_drift=0.0)
    return replace(result, campaign=replace(result.campaign, noise=noise))


def run(
    result: Result, factor: float = 1.0, *, budget_s: float = AMPLE_S, prefill_factor: float | None = None, **more: Any
) -> tuple[Check, SyntheticEngine]:
    """Check a result on an engine that takes a multiple of the time that is expected."""
    expected = result.decision.chosen.predicted
    if result.confirmed and result.confirmation is not None and result.confirmation.chosen is not None:
        expected = result.confirmation.chosen
    prompts = factor if prefill_factor is None else prefill_factor

    def law(part: Part) -> dict[str, float]:
        return {"cpu": factor * expected.tpot_s if part.phase == "decode" else prompts * expected.ttft_s}

    clock = SyntheticClock()
    engine = SyntheticEngine(law, clock, **{"prepare_s": 2.0, **more})
    found = recheck(result, budget_s=budget_s, host=result.host, engine=engine, clock=clock)
    assert found.check is not None
    assert replace(found, check=None) == replace(result, check=None)
    assert not engine.open
    return found.check, engine


@pytest.mark.parametrize("make", [on_cpu, hybrid, lambda: on_cpu("chat"), lambda: confirmed_of(on_cpu())])
def test_a_configuration_as_fast_as_expected_holds(make: Callable[[], Result]) -> None:
    """Both halves of it are run, and nothing else of the result is changed."""
    result = make()
    check, engine = run(result)
    assert check.holds
    assert check.prefill_ran
    assert {phase for _, phase, _ in engine.calls} == {"decode", "prefill"}
    assert all(configuration == result.decision.chosen.configuration for configuration, _, _ in engine.calls)
    assert slowdown(check, result.workload.name) == pytest.approx(0.0, abs=0.02)
    assert not faster(check, result.workload.name)


def test_what_is_expected_is_what_was_measured_or_else_predicted() -> None:
    """Also the interval: predictions are trusted less."""
    predicted, confirmed = quiet(on_cpu()), quiet(confirmed_of(on_cpu()))
    assert confirmed.confirmation is not None
    of_prediction, of_run = run(predicted)[0], run(confirmed)[0]
    chosen = predicted.decision.chosen.predicted
    assert (of_prediction.expected.tpot_s, of_prediction.expected.ttft_s) == (chosen.tpot_s, chosen.ttft_s)
    assert of_run.expected == confirmed.confirmation.chosen
    assert of_run.tolerance < of_prediction.tolerance


@pytest.mark.parametrize("workload", ["server", "chat", "offline"])
def test_slower_beyond_the_tolerance_does_not_hold(workload: str) -> None:
    """Whatever the workload."""
    result = quiet(confirmed_of(on_cpu(workload)))
    check, _ = run(result, 1.2)
    assert not check.holds
    assert slowdown(check, workload) == pytest.approx(0.2, abs=0.02)
    assert "no longer holds" in lines(replace(result, check=check))[0][1]


def test_faster_beyond_the_tolerance_holds_with_advice() -> None:
    """Something else may be the best by now."""
    result = quiet(confirmed_of(on_cpu()))
    check, _ = run(result, 0.7)
    assert check.holds
    assert faster(check, "server")
    assert "tuning anew may find something better" in lines(replace(result, check=check))[-1][1]


def test_a_chat_is_judged_by_its_decode_steps() -> None:
    """As it was chosen by them; for a server slow prompts count."""
    assert run(quiet(confirmed_of(on_cpu("chat"))), prefill_factor=3.0)[0].holds
    assert not run(quiet(confirmed_of(on_cpu("server"))), prefill_factor=3.0)[0].holds


def test_without_time_for_a_prompt_decode_steps_are_compared() -> None:
    """That is said; the expected TTFT stands in what was found."""
    result = quiet(confirmed_of(on_cpu()))
    assert result.confirmation is not None
    assert result.confirmation.chosen is not None
    short_s = 0.6 + 2.0 + result.confirmation.chosen.ttft_s
    check, engine = run(result, 1.01, budget_s=short_s)
    assert {phase for _, phase, _ in engine.calls} == {"decode"}
    assert not check.prefill_ran
    assert check.holds
    assert check.spent_s <= short_s
    assert check.found.ttft_s == check.expected.ttft_s
    assert check.found.tokens_per_s == pytest.approx(
        measured_of(result, check.found.tpot_s, check.expected.ttft_s).tokens_per_s
    )
    told = lines(replace(result, check=check))
    assert "TTFT" not in told[0][1]
    assert "no prompt was run" in told[1][1]
    slow, _ = run(result, 1.3, budget_s=short_s)
    assert slowdown(slow, "server") == pytest.approx(0.3, abs=0.02)
    assert not slow.holds
    predicted, _ = run(quiet(on_cpu()), 1.3, budget_s=short_s)
    assert predicted.tolerance > slow.tolerance


@pytest.mark.parametrize("budget_s", [4.5, 6.0, 8.0, 12.0])
def test_the_budget_is_kept(budget_s: float) -> None:
    """Where bringing in the weights and a few steps leave any of it."""
    check, _ = run(confirmed_of(on_cpu()), budget_s=budget_s, prepare_s=2.5)
    assert check.spent_s <= budget_s


def test_the_budget_is_kept_where_everything_is_slower() -> None:
    """Decode steps tell that a prompt would take too long."""
    check, engine = run(confirmed_of(on_cpu()), 4.0, budget_s=9.0)
    assert check.spent_s <= 9.0
    assert {phase for _, phase, _ in engine.calls} == {"decode"}
    assert {phase for _, phase, _ in run(confirmed_of(on_cpu()), budget_s=9.0)[1].calls} == {"decode", "prefill"}


def test_a_budget_that_the_weights_alone_take_still_gives_a_few_steps() -> None:
    """What is running when the time is over is not interrupted."""
    check, engine = run(on_cpu(), budget_s=1.0, prepare_s=5.0)
    assert [(phase, at_least) for _, phase, at_least in engine.calls] == [("decode", 3)]
    assert not check.prefill_ran


def test_the_tolerance_is_5_percent_at_least_and_grows_with_the_noise() -> None:
    """That of the samples now, and that recorded when it was measured."""
    result = quiet(confirmed_of(on_cpu()))
    assert run(result, noise=0.0005)[0].tolerance == LEAST_TOLERANCE
    assert run(result, noise=0.3, budget_s=8.0)[0].tolerance > LEAST_TOLERANCE
    noise = replace(result.campaign.noise, control_drift=0.08)
    drifted = replace(result, campaign=replace(result.campaign, noise=noise))
    assert run(drifted, noise=0.0005)[0].tolerance == pytest.approx(0.08, abs=0.01)


def test_a_configuration_that_no_longer_fits_is_not_run() -> None:
    """What it needs, what there is, and what to do."""
    result = on_cpu()
    host = replace(result.host, memory=replace(result.host.memory, usable_bytes=10**9))
    with pytest.raises(MemoryLimitError, match=r"needs \d.* on cpu, where .* may be used now: `autotune retune`"):
        recheck(result, budget_s=5.0, host=host, engine=Refusing())


def test_another_hardware_class_has_other_figures() -> None:
    """Both classes are named."""
    with pytest.raises(StoreError, match=r"of hardware class alderlake-12t-.* this host is of icelake-2t-"):
        recheck(hybrid(), budget_s=5.0, host=on_cpu().host, engine=Refusing())


class Refusing:
    """An engine that must not be started."""

    name, reused_layers = "refusing", 0

    def __enter__(self) -> Any:
        raise AssertionError("started")

    def __exit__(self, *_: object) -> None: ...


class Unprepared(SyntheticEngine):
    """An engine whose memory doesn't hold the weights."""

    def prepare(self, configuration: Configuration, workload: Workload) -> RunFailure | None:
        return RunFailure(part_of(configuration, workload, "decode"), "out_of_memory", "there is no memory for it")


@pytest.mark.parametrize(
    ("kind", "fails", "reason"),
    [
        (Unprepared, lambda configuration, phase: None, "there is no memory for it"),
        (SyntheticEngine, lambda configuration, phase: "crashed" if phase == "decode" else None, "as the test wants"),
        (SyntheticEngine, lambda configuration, phase: "hung" if phase == "prefill" else None, "as the test wants"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_an_error(
    kind: type[SyntheticEngine], fails: Callable[[Configuration, Phase], str | None], reason: str
) -> None:
    """One sentence, with the engine's reason."""
    result = on_cpu()
    clock = SyntheticClock()
    engine = kind(lambda part: {"cpu": 0.1}, clock, fails=fails)
    with pytest.raises(BenchmarkError, match=f"^the saved configuration could not be run: {reason}"):
        recheck(result, budget_s=AMPLE_S, host=result.host, engine=engine, clock=clock)


def test_a_result_that_was_never_checked_says_nothing() -> None:
    """No line at all."""
    assert lines(on_cpu()) == []


def test_what_was_found_does_not_become_what_is_expected() -> None:
    """A slow moment must not make the next check expect it."""
    result = quiet(confirmed_of(on_cpu()))
    slow, _ = run(result, 1.3)
    again, _ = run(replace(result, check=slow))
    assert again.expected == slow.expected
    assert again.holds
    assert Outlook(replace(result, check=slow)).chosen == Outlook(result).chosen
