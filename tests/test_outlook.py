"""What a saved result says about configurations that it didn't choose, on results replayed from recordings."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.outlook import Outlook, Prospect
from autotune.pipeline import conclude_again
from autotune.records import Part, PartRun, part_of
from tests.builders import build_confirmation
from tests.replayed import hybrid, on_cpu, on_gpu


def ran(part: Part, time_s: float) -> PartRun:
    return PartRun(part, samples_s=(time_s,) * 8, device_s={"cpu": (time_s,) * 8})


def best_of(outlook: Outlook) -> Prospect:
    point = outlook.contest.best()
    assert point is not None
    return outlook.at(outlook.evaluator.space.configuration(point))


def test_the_chosen_configuration_has_the_figures_it_was_saved_with() -> None:
    """Also its memory; nothing speaks against it, and no other is better."""
    for result in (on_cpu(), on_gpu(), hybrid()):
        outlook = Outlook(result)
        chosen = result.decision.chosen
        assert outlook.chosen.configuration == chosen.configuration
        assert outlook.chosen.predicted.memory == chosen.predicted.memory
        assert outlook.chosen.predicted.tokens_per_s == pytest.approx(chosen.predicted.tokens_per_s)
        assert outlook.chosen.obstacles == ()
        assert best_of(outlook) == outlook.chosen


def test_predictions_lie_within_their_ranges_which_runs_make_narrower() -> None:
    """What was run tells how far off predictions are; and it is reported as measured."""
    result = on_cpu()
    before = Outlook(result).chosen
    low, high = before.tokens_per_s_within
    assert low < before.predicted.tokens_per_s < high
    assert before.measured is None
    configuration, workload = result.decision.chosen.configuration, result.workload
    confirmation = replace(
        build_confirmation(workload, configuration, configuration),
        runs=(
            ran(part_of(configuration, workload, "decode"), before.predicted.tpot_s * 1.05),
            ran(part_of(configuration, workload, "prefill"), before.predicted.ttft_s),
        ),
    )
    after = Outlook(replace(result, confirmation=confirmation)).chosen
    assert after.measured is not None
    assert after.measured.tpot_s == pytest.approx(before.predicted.tpot_s * 1.05)
    assert after.tpot_s_within[0] < after.measured.tpot_s < after.tpot_s_within[1]
    assert after.tpot_s_within[1] - after.tpot_s_within[0] < before.tpot_s_within[1] - before.tpot_s_within[0]


def test_one_setting_is_varied_and_the_rest_stays() -> None:
    """Every value that is offered, and those asked for."""
    result = on_cpu()
    outlook = Outlook(result, batches=[12])
    chosen = result.decision.chosen.configuration
    batches = [prospect.configuration.batch_size for prospect in outlook.over("batch_size")]
    assert batches == sorted({1, 2, 4, 8, 12, 16, 32, chosen.batch_size})
    for prospect in outlook.over("decode_threads"):
        assert replace(prospect.configuration, decode_threads=chosen.decode_threads) == chosen
    tokens_per_s = [prospect.predicted.tokens_per_s for prospect in outlook.over("batch_size")]
    assert tokens_per_s == sorted(tokens_per_s), "12 lies between 8 and 16"


def test_what_breaks_a_limit_or_the_memory_says_by_how_much() -> None:
    """Each obstacle is a sentence."""
    result = on_cpu()
    limited = conclude_again(result, replace(result.workload, max_tpot_s=0.06, max_ttft_s=2.0), result.host)
    largest = Outlook(limited).over("batch_size")[-1]
    assert any(
        sentence.startswith("A token takes") and "over the limit of 60 ms" in sentence for sentence in largest.obstacles
    )
    beyond = Outlook(limited, batches=[64]).at(replace(limited.decision.chosen.configuration, batch_size=64))
    assert "The workload allows batches of at most 32." in beyond.obstacles
    small = replace(result.host, memory=replace(result.host.memory, usable_bytes=2 * 10**9))
    chosen = Outlook(result, small).chosen
    assert any("more than there is" in sentence for sentence in chosen.obstacles) or chosen.configuration.batch_size < 4
    best = best_of(Outlook(result, small))
    assert best.obstacles == ()
    assert best.configuration.batch_size <= chosen.configuration.batch_size


def test_threads_are_not_varied_where_the_cpu_has_nothing_to_do() -> None:
    """They would be of no consequence."""
    assert on_gpu().device_config.strategy == "GpuOnly"
    assert len(Outlook(on_gpu()).over("decode_threads")) == 1
