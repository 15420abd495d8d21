"""The exam of synthetic grids whose right answers were worked out by hand.

Cost of the offline workload here, per token: (B prompts and two steps) / 3 B. On two threads a batch of one takes
(1 + 2 * 2) / 3 = 5/3 s, one of two (2 * 1 + 2 * 3) / 6 = 4/3 s, which is the best.
"""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.model import memory
from autotune.model.memory import Room
from autotune.records import GridPart, MemoryUse, RunFailure, part_of
from autotune.search.baselines import Baseline
from autotune.verify.exam import Predictions, examine, rank_correlation, subject
from tests.verify.conftest import (
    confirmation_of,
    evaluator_of,
    every_part,
    grid_of,
    on_cpu,
    result_of,
    small_workload,
    steady,
)

BEST = on_cpu(2, 2, 2, 64)
SINGLE = on_cpu(2, 2, 1, 64)
SLOW = on_cpu(1, 1, 1, 32)


def part(configuration, phase, workload=None):
    return part_of(configuration, workload or small_workload(), phase)


def exam_of(chosen, samples=None, *, workload=None, baselines=(), predictions=None, grid=None, result=None, **options):
    workload = workload or small_workload()
    samples = samples or steady(every_part(workload))
    return examine(
        result or result_of(chosen, workload),
        grid or grid_of(samples),
        predictions or Predictions(evaluator_of(workload)),
        [(Baseline(name, "synthetic", lambda *_: None), configuration) for name, configuration in baselines],
        **options,
    )


def test_the_best_has_no_regret_and_is_within_the_noise_of_itself():
    exam = exam_of(BEST)
    assert exam.best == exam.chosen == BEST
    assert (exam.regret, exam.regret_interval, exam.within_noise) == (0.0, (0.0, 0.0), True)
    assert exam.kept_limits is True
    assert exam.measured == exam.best_measured
    assert exam.measured.tokens_per_s == pytest.approx(6 / 8)
    assert (exam.measured.tpot_s, exam.measured.ttft_s, exam.measured.relative_interval) == (3.0, 1.0, 0.0)
    assert (exam.configurations, exam.feasible_configurations) == (16, 16)
    assert exam.notes == ()


def test_regret_is_time_per_token_beyond_the_best():
    """5/3 over 4/3."""
    exam = exam_of(SINGLE)
    assert exam.best == BEST
    assert exam.regret == pytest.approx(0.25)
    assert exam.regret_interval == pytest.approx((0.25, 0.25))
    assert exam.within_noise is False


def test_the_interval_of_a_regret_is_that_of_its_parts_medians():
    """Medians of seven draws from four times 1.7 s and three times 2.3 s are either, each far oftener than 2.5 %.

    A single sequence then takes (1 + 2 * 1.7) / 3 or (1 + 2 * 2.3) / 3 s per token, over 4/3 s of the best.
    """
    samples = steady(every_part())
    samples[part(SINGLE, "decode")] = (1.7, 2.3, 1.7, 2.3, 1.7, 2.3, 1.7)
    exam = exam_of(SINGLE, samples)
    assert exam.regret == pytest.approx(4.4 / 4 - 1)
    assert exam.regret_interval == pytest.approx((4.4 / 4 - 1, 5.6 / 4 - 1))
    assert exam.measured.relative_interval == pytest.approx((5.6 - 4.4) / 2 / 4.4)


def test_what_cannot_be_told_from_the_best_is_within_the_noise():
    """Its steps take 1.5 s as likely as 1.9: as fast as the best, or slower."""
    samples = steady(every_part())
    samples[part(SINGLE, "decode")] = (1.4, 1.6, 1.4, 1.6, 1.4, 1.6, 1.6)
    exam = exam_of(SINGLE, samples)
    assert exam.best == BEST
    assert exam.regret == pytest.approx(4.2 / 4 - 1)
    assert exam.regret_interval == pytest.approx((3.8 / 4 - 1, 4.2 / 4 - 1))
    assert exam.within_noise is True


def test_noise_of_a_part_that_both_share_is_none_of_the_regret():
    """The same wild steps of 1, 3 or 9 s; only the chosen one's prompts take 1.1 s instead of 1.

    So it takes (2.2 + 2 * 9) / (2 + 2 * 9) to (2.2 + 2 * 1) / (2 + 2 * 1) times as long, never less.
    """
    samples = steady(every_part())
    samples[part(BEST, "decode")] = (1.0, 9.0, 3.0, 3.0, 1.0, 9.0, 3.0)
    chosen = on_cpu(2, 2, 2, 32)
    samples[part(chosen, "prefill")] = (1.1,) * 8
    exam = exam_of(chosen, samples)
    assert exam.best == BEST
    assert exam.regret == pytest.approx(8.2 / 8 - 1)
    assert exam.regret_interval == pytest.approx((0.01, 0.05))
    assert exam.within_noise is False


def test_where_all_are_equal_only_the_cross_fitted_regret_is_about_zero():
    """Of sixteen equal ones that noise tells apart the best is the luckiest, and every other seems worse."""
    regrets, fair = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        samples = {
            own: tuple((own.size if own.phase == "decode" else 1.0) * random.normal(1, 0.03, 9)) for own in every_part()
        }
        exam = exam_of(SINGLE, samples)
        regrets.append(exam.regret)
        fair.append(exam.cross_fitted_regret)
    assert np.mean(regrets) > 0.009
    assert abs(np.mean(fair)) < 0.003


def test_a_cross_fitted_regret_is_the_regret_where_nothing_is_noise():
    assert exam_of(SINGLE).cross_fitted_regret == pytest.approx(0.25)
    assert exam_of(BEST).cross_fitted_regret == 0.0


def test_a_part_that_failed_leaves_the_cross_fitted_regret_of_the_rest():
    grid = grid_of(steady(every_part()))
    failed = part(SLOW, "decode")
    parts = (
        GridPart(RunFailure(failed, "crashed", "died"), 0.1) if each.outcome.part == failed else each
        for each in grid.parts
    )
    assert exam_of(SINGLE, grid=replace(grid, parts=tuple(parts))).cross_fitted_regret == pytest.approx(0.25)


def test_where_nothing_keeps_a_limit_there_is_no_cross_fitted_regret():
    workload = small_workload(max_ttft_s=0.1)
    assert exam_of(SINGLE, workload=workload).cross_fitted_regret is None


def test_too_few_samples_give_no_interval():
    exam = exam_of(SINGLE, steady(every_part(), count=5))
    assert exam.regret == pytest.approx(0.25)
    assert exam.regret_interval is exam.within_noise is exam.measured.relative_interval is None
    assert exam.cross_fitted_regret is None


def test_intervals_follow_the_seed_alone():
    random = np.random.default_rng(0)
    samples = {part: tuple(own * random.uniform(0.8, 1.2, 15)) for part, (own, *_) in steady(every_part()).items()}
    intervals = [exam_of(SINGLE, samples, seed=seed).regret_interval for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
    low, high = intervals[0]
    assert low < exam_of(SINGLE, samples).regret < high


def test_of_two_that_tie_the_one_with_fewer_threads_counts_as_the_best():
    samples = steady(every_part())
    for phase, other in (("decode", on_cpu(1, 1, 2, 64)), ("prefill", on_cpu(1, 1, 2, 64))):
        samples[part(other, phase)] = samples[part(BEST, phase)]
    exam = exam_of(BEST, samples)
    assert exam.best == on_cpu(1, 1, 2, 64)
    assert (exam.regret, exam.within_noise) == (0.0, True)


def test_chat_is_after_the_time_per_token_alone():
    """Its prompt takes twice as long in short chunks, and there is no regret in that."""
    workload = small_workload("chat")
    exam = exam_of(on_cpu(2, 2, 1, 32), workload=workload)
    assert exam.best == SINGLE
    assert exam.regret == 0.0
    slow = exam_of(on_cpu(1, 2, 1, 64), workload=workload)
    assert slow.regret == pytest.approx(1.0)
    assert (exam.configurations, exam.feasible_configurations) == (8, 8)


def test_a_limit_rules_out_what_breaks_it_as_measured():
    workload = small_workload("server", max_tpot_s=2.5)
    exam = exam_of(SINGLE, workload=workload)
    assert (exam.best, exam.regret, exam.max_tpot_s) == (SINGLE, 0.0, 2.5)
    beyond = exam_of(BEST, workload=workload)
    assert beyond.kept_limits is False
    assert beyond.regret == pytest.approx(4 / 5 - 1)
    assert beyond.within_noise is False
    assert beyond.notes == ("the chosen configuration breaks the limit on the time per output token as measured",)


def test_a_limit_that_nothing_keeps_is_relaxed_to_what_was_measured():
    """The best step takes 2 s: 1.25 times that is allowed, so a batch of two is not."""
    workload = small_workload("server", max_tpot_s=0.1, relaxed_tpot_ratio=1.25)
    exam = exam_of(SINGLE, workload=workload)
    assert (exam.best, exam.max_tpot_s) == (SINGLE, 2.5)
    wider = replace(workload, relaxed_tpot_ratio=1.5)
    assert exam_of(SINGLE, workload=wider).best == BEST


def test_where_nothing_keeps_the_limits_there_is_no_best_and_no_regret():
    for limits in ({"max_tpot_s": 1.0}, {"max_ttft_s": 0.5}):
        exam = exam_of(SINGLE, workload=small_workload("server", **limits))
        assert exam.best is exam.best_measured is exam.regret is exam.regret_interval is None
        assert exam.measured is not None
        assert exam.notes[-1] == "no configuration that was measured keeps the limits"
        assert exam.kept_limits is False


def test_a_limit_on_the_first_token_counts_as_well():
    exam = exam_of(on_cpu(2, 1, 2, 64), workload=small_workload(max_ttft_s=1.5))
    assert exam.best == BEST
    assert exam.notes == ("the chosen configuration breaks the limit on the first token as measured",)


def test_limits_within_the_noise_are_said_to_be_so():
    """A step of two takes 2.9 or 3.1 s where 3 are allowed."""
    samples = steady(every_part())
    samples[part(BEST, "decode")] = (2.9, 3.1, 2.9, 3.1, 2.9, 3.1, 2.9)
    workload = small_workload("server", max_tpot_s=3.0)
    exam = exam_of(BEST, samples, workload=workload)
    assert exam.kept_limits is True
    assert exam.notes == ("the best configuration keeps the limit on the time per output token only within the noise",)
    samples[part(BEST, "decode")] = (2.9, 3.1, 2.9, 3.1, 2.9, 3.1, 3.1)
    exam = exam_of(BEST, samples, workload=workload)
    assert exam.kept_limits is False
    assert exam.notes[0].endswith("as measured, which is within the noise")


def test_baselines_are_compared_with_the_best_and_with_the_chosen_one():
    """The slowest takes (4 + 2 * 4) / 3 = 4 s per token, three times the best and 12/5 of a single sequence."""
    exam = exam_of(SINGLE, baselines=[("slow", SLOW), ("same", SINGLE)])
    slow, same = exam.baselines
    assert (slow.name, slow.origin, slow.configuration, slow.obstacle) == ("slow", "synthetic", SLOW, None)
    assert slow.measured.tokens_per_s == pytest.approx(1 / 4)
    assert slow.regret == pytest.approx(2.0)
    assert slow.regret_interval == pytest.approx((2.0, 2.0))
    assert slow.speedup == pytest.approx(12 / 5)
    assert slow.speedup_interval == pytest.approx((12 / 5, 12 / 5))
    assert same.regret == exam.regret
    assert (same.speedup, same.speedup_interval) == (1.0, (1.0, 1.0))


def tight_room():
    """Memory that holds a batch of two with short chunks, or one sequence, but not a batch of two with long ones."""
    evaluator = evaluator_of()
    small, large = (
        memory.plan(evaluator.model, on_cpu(1, 1, batch, 64), 128, evaluator.room)[0].total_bytes for batch in (1, 2)
    )
    return Room({"cpu": (small + large) // 2}, {"cpu": 10**6})


def test_a_baseline_that_does_not_fit_says_so():
    """Its parts are in the grid, as halves of configurations that fit, but it is no candidate for the best."""
    exam = exam_of(SINGLE, predictions=Predictions(evaluator_of(room=tight_room())), baselines=[("batched", BEST)])
    (baseline,) = exam.baselines
    assert baseline.obstacle == "does not fit the memory"
    assert baseline.measured is baseline.regret is baseline.regret_interval is None
    assert baseline.speedup is baseline.speedup_interval is None
    assert exam.best == SINGLE
    assert (exam.configurations, exam.feasible_configurations) == (12, 12)


def test_why_a_baseline_has_no_figures_is_said():
    failed = RunFailure(part(SLOW, "prefill"), "crashed", "the process died")
    samples = steady(every_part())
    del samples[part(SLOW, "prefill")], samples[part(on_cpu(2, 1, 1, 64), "prefill")]
    grid = grid_of(samples)
    grid = replace(grid, parts=(*grid.parts, GridPart(failed, 2.0)), feasible_parts=8)
    rivals = [("failing", SLOW), ("left out", on_cpu(2, 1, 1, 64)), ("elsewhere", on_cpu(3, 3, 1, 64))]
    exam = exam_of(SINGLE, grid=grid, baselines=rivals)
    assert [baseline.obstacle for baseline in exam.baselines] == [
        "could not be run: the process died",
        "is not in the grid",
        "is no point of the search space",
    ]
    for baseline in exam.baselines:
        assert baseline.measured is baseline.regret is baseline.speedup is baseline.speedup_interval is None
    assert exam.notes == (
        "the grid has 7 of 8 parts: the best may be among the rest",
        "1 of 7 parts could not be run, the first: the process died",
    )


def test_a_baseline_that_breaks_a_limit_is_measured_all_the_same():
    exam = exam_of(
        SINGLE, workload=small_workload("server", max_tpot_s=2.5, max_ttft_s=2.0), baselines=[("slow", SLOW)]
    )
    (slow,) = exam.baselines
    assert slow.obstacle == "breaks the limit on the time per output token and breaks the limit on the first token"
    assert slow.regret == pytest.approx(12 / 5 - 1)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_chosen_configuration_that_is_not_in_the_grid_has_no_regret_and_a_note(phase):
    samples = steady(every_part())
    del samples[part(SINGLE, phase)]
    exam = exam_of(SINGLE, samples, baselines=[("slow", SLOW)])
    assert exam.measured is exam.regret is exam.regret_interval is exam.kept_limits is exam.within_noise is None
    assert exam.notes == ("the chosen configuration is not in the grid",)
    assert exam.baselines[0].speedup is None
    assert exam.baselines[0].regret is not None


def test_a_chosen_configuration_that_fails_says_why():
    samples = steady(every_part())
    del samples[part(SINGLE, "decode")]
    grid = grid_of(samples)
    failure = RunFailure(part(SINGLE, "decode"), "hung", "no answer for 60 s")
    exam = exam_of(SINGLE, grid=replace(grid, parts=(*grid.parts, GridPart(failure, 60.0)), feasible_parts=8))
    assert exam.notes[0] == "the chosen configuration could not be run: no answer for 60 s"


def test_a_chosen_configuration_outside_the_space_is_said_to_be_that():
    assert exam_of(on_cpu(3, 3, 1, 64)).notes == ("the chosen configuration is no point of the search space",)


def test_an_empty_grid_is_examined_without_an_error():
    exam = exam_of(SINGLE, grid=grid_of({}))
    assert exam.best is exam.regret is None
    assert exam.configurations == 0
    assert exam.predictions[0].parts.count == exam.predictions[0].configurations.count == 0
    assert exam.predictions[0].configurations.median is exam.predictions[0].rank_correlation is None
    assert exam.exhaustive_time_s == 0.0


def test_an_empty_grid_leaves_a_limit_that_would_be_relaxed_as_it_is():
    workload = small_workload("server", max_tpot_s=2.5, relaxed_tpot_ratio=1.25)
    exam = exam_of(SINGLE, grid=grid_of({}), workload=workload)
    assert (exam.best, exam.max_tpot_s) == (None, 2.5)


def test_parts_of_other_workloads_are_no_part_of_the_exam():
    """A grid that serves a longer prompt as well: each exam counts its own."""
    own, longer = small_workload(), small_workload(prompt_tokens=80)
    samples = steady(every_part(own)) | steady(every_part(longer))
    exam = exam_of(BEST, samples)
    assert exam.configurations == 16
    assert exam.predictions[0].parts.count == 8


def test_prediction_errors_before_and_after_a_correction():
    """Ten percent too slow before, exact after; seen are the parts of one configuration."""
    workload = small_workload()
    predictions = Predictions(evaluator_of(scale=1.1), evaluator_of())
    seen = [part(BEST, phase) for phase in ("decode", "prefill")]
    seen.append(part(BEST, "decode", replace(workload, output_tokens=9)))  # of another workload: none of the grid's
    result = result_of(BEST, confirmation=confirmation_of(seen, workload))
    exam = exam_of(BEST, predictions=predictions, result=result)
    before, after = exam.predictions
    assert exam.confirmed
    assert (before.stage, after.stage) == ("before correction", "after correction")
    for errors, count in (
        (before.parts, 8),
        (before.unseen_parts, 6),
        (before.configurations, 16),
        (before.unseen_configurations, 15),
    ):
        assert errors.count == count
        assert (errors.median, errors.p90, errors.worst) == pytest.approx((0.1, 0.1, 0.1))
    assert after.configurations.worst == pytest.approx(0.0, abs=1e-12)
    assert before.rank_correlation == pytest.approx(1.0)


def test_errors_are_absolute_and_their_quantiles_those_of_the_parts():
    """Steps measured at 1, 2, 4 and 5/4 times the prediction: errors of 0, 1/2, 3/4 and 1/5; prompts are exact."""
    samples = steady(every_part())
    for factor, configuration in ((2, SINGLE), (4, BEST), (1.25, SLOW)):
        (own, *_) = samples[part(configuration, "decode")]
        samples[part(configuration, "decode")] = (own * factor,) * 8
    (errors,) = [stage.parts for stage in exam_of(BEST, samples).predictions]
    assert errors.median == pytest.approx(0.0)
    assert errors.worst == pytest.approx(0.75)
    assert errors.p90 == pytest.approx(0.5 + 0.3 * 0.25)


def test_runs_for_another_workload_correct_but_do_not_confirm():
    workload = small_workload()
    confirmation = confirmation_of([], replace(workload, output_tokens=7))
    assert not exam_of(BEST, result=result_of(BEST, confirmation=confirmation)).confirmed


def test_runs_that_nothing_was_chosen_by_do_not_confirm():
    """The time was up before the best could be run to its end, say: what was chosen is predicted."""
    workload = small_workload()
    confirmation = replace(confirmation_of([], workload), chosen=None)
    assert not exam_of(BEST, result=result_of(BEST, workload, confirmation=confirmation)).confirmed


def test_predictions_in_the_wrong_order_have_a_low_rank_correlation():
    """Measured the other way round than predicted: two threads as slow as one was to be, and one as fast."""
    swapped = {replace(part, threads=3 - part.threads): own for part, own in steady(every_part()).items()}
    assert exam_of(BEST).predictions[0].rank_correlation == pytest.approx(1.0)
    assert exam_of(BEST, swapped).predictions[0].rank_correlation < 0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / 22.5**0.5),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_rank_correlation_is_spearmans(first, second, expected):
    """1 - 6 d² / (n (n² - 1)) without ties; with them the mean ranks are correlated."""
    found = rank_correlation(np.array(first, float), np.array(second, float))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_exhaustive_run_is_every_configuration_by_itself():
    """16 configurations of two parts that took 1.5 s each, though eight parts were run."""
    exam = exam_of(BEST, grid=grid_of(steady(every_part()), spent_s=1.5))
    assert exam.exhaustive_time_s == 16 * 2 * 1.5
    assert exam.tune_time_s == 2.5


def test_memory_planned_is_compared_without_the_tokenizer():
    result = result_of(BEST)
    vocabulary = memory.vocabulary_bytes(result.model)
    uses = (
        MemoryUse("cpu", 700 + vocabulary, 200, 60, 40, 10**9),
        MemoryUse("cuda:0", 500, 0, 0, 0, 10**9),
        MemoryUse("cuda:1", 500, 0, 0, 0, 10**9),
    )
    chosen = result.decision.chosen
    chosen = replace(chosen, predicted=replace(chosen.predicted, memory=uses))
    result = replace(result, decision=replace(result.decision, chosen=chosen))
    exam = exam_of(BEST, result=result, memory_used={"cpu": 800, "cuda:0": 625})
    assert [(use.device, use.planned_bytes, use.used_bytes) for use in exam.memory] == [
        ("cpu", 1000, 800),
        ("cuda:0", 500, 625),
    ]
    assert [use.relative_error for use in exam.memory] == pytest.approx([0.25, -0.2])


def test_memory_that_could_not_be_measured_is_a_note():
    failure = RunFailure(part(BEST, "decode"), "out_of_memory", "no memory is left")
    exam = exam_of(BEST, memory_used=failure)
    assert exam.memory == ()
    assert exam.notes == ("the memory used is unknown: no memory is left",)


def test_reused_layers_are_a_note():
    grid = grid_of(steady(every_part()), reused_layers=3)
    assert exam_of(BEST, grid=grid).notes == ("3 layers used other layers' weights: the memory doesn't hold all",)


def test_on_a_gpu_thread_counts_are_one_configuration():
    """All on the GPU, with any thread counts: measured with one, found with two."""
    evaluator = evaluator_of(gpus=1)
    chosen = replace(on_cpu(2, 2, 2, 64), device_layers={"cuda:0": 4}, head_device="cuda:0")
    measured = {replace(part(chosen, phase), threads=1): (1.0,) * 6 for phase in ("decode", "prefill")}
    exam = exam_of(chosen, measured, predictions=Predictions(evaluator))
    assert exam.regret == 0.0
    assert exam.best == replace(chosen, decode_threads=1, prefill_threads=1)
    assert exam.configurations == 1
    placements = len(evaluator.space.layers)
    assert exam.feasible_configurations == (placements - 1) * 16 + 4


def test_a_subject_keeps_the_chosen_one_and_the_baselines_that_fit():
    tight = evaluator_of(room=tight_room())
    rivals = [
        (Baseline(name, "synthetic", lambda *_: None), configuration)
        for name, configuration in (("fits", SLOW), ("large", BEST), ("elsewhere", on_cpu(3, 3, 1, 64)))
    ]
    found = subject(result_of(SINGLE), Predictions(evaluator_of(), tight), rivals)
    assert found.kept == (SINGLE, SLOW)
    assert found.evaluator is tight
    assert found.max_tpot_s == 0.1
    assert subject(result_of(SINGLE), Predictions(tight), rivals).evaluator is tight
