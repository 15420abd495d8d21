"""The measured search on a synthetic engine: made-up laws, so that the right answer is known; no host was timed."""

import math
import subprocess
import sys
from collections import Counter

import optuna
import pytest
from msgspec.structs import replace

from autotune.records import part_of
from autotune.search.belief import Belief
from autotune.search.figures import Runs
from autotune.search.measured import search
from tests.builders import build_workload
from tests.search.synthetic_engine import Problem, SyntheticClock, SyntheticEngine

NOISE = 0.01


def offline(**overrides):
    limits = {"max_tpot_s": None, "relaxed_tpot_ratio": None}
    return build_workload(
        **{"name": "offline", "prompt_tokens": 256, "output_tokens": 128, "max_batch": 16, **limits, **overrides}
    )


def run(problem, *, bias=lambda part: 1.0, seed=0, fails=None, noise=0.004, prepare_s=0.2, believed=NOISE, **arguments):
    """A search that believes in some noise, with the engine that it ran on and what is true."""
    truth, clock = problem.truth(bias), SyntheticClock()
    failing = {} if fails is None else {"fails": fails}
    engine = SyntheticEngine(truth, clock, seed=seed, noise=noise, prepare_s=prepare_s, **failing)
    outcome = search(engine, **problem.arguments(clock=clock, noise=believed, **arguments))
    assert not engine.open
    return outcome, engine, truth


def best_of(problem, truth):
    """The lowest true cost of all configurations."""
    return min(problem.costs(configuration, truth) for configuration in problem.every())


def slow_beyond(threads, factor):
    """A host on which more threads than these are slower than predicted."""
    return lambda part: factor if part.threads > threads else 1.0


@pytest.mark.parametrize("name", ["offline", "chat"])
def test_the_best_is_found_where_the_predicted_best_is_far_off(name):
    """Six threads are predicted to be best and do 25 % worse than that; the choice is within the noise of the best."""
    problem = Problem(workload=offline(name=name, max_batch=1 if name == "chat" else 16))
    regrets = []
    for seed in range(20):
        outcome, _, truth = run(problem, bias=slow_beyond(4, 1.25), seed=seed, budget_s=40.0)
        first = outcome.confirmation.trials[0]
        assert (first.origin, first.configuration.decode_threads) == ("predicted best", 6)
        best = best_of(problem, truth)
        assert problem.costs(first.configuration, truth)[0] / best[0] > 1.1
        regrets.append(problem.costs(outcome.winner, truth)[0] / best[0] - 1)
        assert outcome.confirmation.spent_s <= 40 + 3
    assert sorted(regrets)[10] <= NOISE
    assert max(regrets) <= 2 * NOISE


def test_a_right_prediction_is_confirmed_soon():
    """Nothing else could win, so the search ends before the budget is spent."""
    problem = Problem(workload=offline())
    outcome, _, truth = run(problem)
    confirmation = outcome.confirmation
    assert confirmation.stopped == "decided"
    assert confirmation.spent_s < 0.8 * confirmation.budget_s
    assert problem.costs(outcome.winner, truth)[0] <= best_of(problem, truth)[0] * (1 + NOISE)
    assert confirmation.chosen.tokens_per_s == pytest.approx(1 / problem.costs(outcome.winner, truth)[0], rel=0.02)
    assert confirmation.default.tokens_per_s < confirmation.chosen.tokens_per_s
    assert confirmation.runner_up not in (None, outcome.winner)
    assert (confirmation.engine, confirmation.overhead_share, confirmation.storage) == ("synthetic", 0.05, None)
    assert confirmation.memory_used == {"cpu": 10**9}


def test_what_people_use_is_tried_beside_the_predicted_best():
    outcome, _, _ = run(Problem(workload=offline()))
    origins = [trial.origin for trial in outcome.confirmation.trials]
    assert origins[:5] == ["predicted best", "default", "predicted runner-up", "all logical cores", "physical cores"]


def test_hopeless_trials_get_no_more_than_a_first_look():
    """What people use is far off here: it is given up before its prompt is run, or any step at all."""
    problem = Problem(workload=offline())
    outcome, engine, _ = run(problem)
    pruned = [trial for trial in outcome.confirmation.trials if trial.state == "pruned"]
    baselines = [trial for trial in pruned if trial.origin in ("all logical cores", "physical cores")]
    assert len(baselines) == 2
    assert all(trial.measured is None and "best" in trial.reason for trial in pruned)
    sizes = {run.part: len(run.samples_s) for run in outcome.confirmation.runs}
    for trial in baselines:
        assert sizes.get(part_of(trial.configuration, problem.workload, "decode"), 0) <= 3
        assert (trial.configuration, "prefill", 1) not in engine.calls


def test_configurations_that_share_a_part_run_it_once():
    """All have one prompt in common, so it is run once; decode steps are run for each."""
    problem = Problem(workload=offline(prompt_tokens=32), threads=(4,))
    outcome, engine, _ = run(problem)
    assert len([trial for trial in outcome.confirmation.trials if trial.state == "complete"]) >= 2
    phases = Counter(phase for _, phase, _ in engine.calls)
    assert phases["prefill"] == 1
    assert phases["decode"] > 1


def test_no_configuration_that_lacks_memory_is_ever_run():
    """Memory for a batch of four: larger ones are better, but not even prepared."""
    roomy = Problem(workload=offline())
    needs = {batch: roomy_needs(roomy, replace(roomy.default, batch_size=batch, prefill_chunk=64)) for batch in (4, 8)}
    problem = Problem(workload=offline(), available_bytes={"cpu": (needs[4] + needs[8]) // 2})
    outcome, engine, _ = run(problem)
    assert engine.prepared
    assert all(
        roomy_needs(problem, configuration) <= problem.available_bytes["cpu"] for configuration in engine.prepared
    )
    assert outcome.winner.batch_size == 4


def roomy_needs(problem, configuration):
    from autotune.model import memory

    (use,) = memory.plan(problem.model, configuration, problem.workload.context_tokens, problem.room)
    return use.total_bytes


def test_what_is_measured_over_a_limit_is_infeasible_and_never_wins():
    """Large batches are predicted to keep the limit and don't; the best that keeps it wins."""
    free = Problem(workload=offline())
    limit_s = 1.1 * sum(free.truth()(part_of(replace(free.default, batch_size=8), free.workload, "decode")).values())
    problem = Problem(workload=offline(max_tpot_s=limit_s))
    outcome, _, truth = run(problem, bias=lambda part: 1.3 if part.size >= 8 and part.phase == "decode" else 1.0)
    trials = outcome.confirmation.trials
    broken = [trial for trial in trials if trial.state == "infeasible"]
    assert broken
    assert all("time per output token" in trial.reason for trial in broken)
    assert outcome.confirmation.chosen.tpot_s <= limit_s
    kept = [
        problem.costs(configuration, truth)
        for configuration in problem.every()
        if sum(truth(part_of(configuration, problem.workload, "decode")).values()) <= limit_s
    ]
    assert problem.costs(outcome.winner, truth)[0] <= min(kept)[0] * 1.02


def test_a_relaxed_limit_follows_what_was_measured():
    """Where nothing keeps the server's limit it is a ratio of the best step; steps are twice as long as predicted."""
    workload = offline(name="server", max_tpot_s=1e-3, relaxed_tpot_ratio=1.25)
    problem = Problem(workload=workload)
    outcome, _, truth = run(problem, bias=lambda part: 2.0)
    steps_s = [sum(truth(part_of(configuration, workload, "decode")).values()) for configuration in problem.every()]
    assert outcome.confirmation.chosen.tpot_s <= 1.25 * min(steps_s) * 1.03
    assert outcome.winner is not None


def test_a_limit_that_nothing_keeps_leaves_no_winner():
    """Predicted to be kept, but it isn't: that is said, and what was run corrects the model all the same."""
    free = Problem(workload=offline())
    fastest = min(
        sum(free.truth()(part_of(configuration, free.workload, "decode")).values()) for configuration in free.every()
    )
    problem = Problem(workload=offline(max_tpot_s=1.05 * fastest))
    outcome, _, _ = run(problem, bias=lambda part: 1.4)
    assert outcome.winner is None
    assert outcome.confirmation.chosen is None
    assert {trial.state for trial in outcome.confirmation.trials} <= {"infeasible", "pruned"}
    assert outcome.confirmation.corrections[0].factor == pytest.approx(1.4, rel=0.02)


def test_the_default_is_kept_where_nothing_beats_it_beyond_the_noise():
    """Eight sequences on six threads are better than the default by half the noise: it stays."""
    base = Problem(workload=offline(name="chat", max_batch=1))
    truth = base.truth()
    best = min(base.every(), key=lambda configuration: base.costs(configuration, truth))
    ratio = base.costs(base.default, truth)[0] / base.costs(best, truth)[0]
    ratio_ttft = base.costs(base.default, truth)[1] / base.costs(best, truth)[1]

    def bias(part):
        off = {"decode": ratio, "prefill": ratio_ttft}[part.phase]
        return 0.995 * off if part.threads != base.default.decode_threads else 1.0

    outcome, _, truth = run(base, bias=bias, noise=0.001, budget_s=60.0)
    assert outcome.winner == base.default
    assert outcome.confirmation.chosen == outcome.confirmation.default


def test_ties_go_to_fewer_threads():
    """From four threads on all are equally fast, as where memory is the limit, but predictions favour eight."""
    problem = Problem(workload=offline(), threads=(1, 2, 4, 8))
    predicted = problem.truth()

    def bias(part):
        four, own = (sum(predicted(replace(part, threads=threads)).values()) for threads in (4, part.threads))
        return four / own if part.threads > 4 else 1.0

    for seed in range(5):
        outcome, _, _ = run(problem, bias=bias, seed=seed, noise=0.002, budget_s=100.0)
        assert outcome.confirmation.trials[0].configuration.decode_threads == 8
        assert (outcome.winner.decode_threads, outcome.winner.prefill_threads) == (4, 4)


def test_what_fails_is_left_out_and_the_search_goes_on():
    """A kernel that crashes with eight sequences or more."""
    problem = Problem(workload=offline())

    def fails(configuration, phase):
        return "crashed" if phase == "decode" and configuration.batch_size >= 8 else None

    outcome, _, truth = run(problem, fails=fails, budget_s=40.0)
    failed = [trial for trial in outcome.confirmation.trials if trial.state == "failed"]
    assert failed
    assert all("crashed" in trial.reason for trial in failed)
    assert {failure.kind for failure in outcome.confirmation.failures} == {"crashed"}
    kept = [problem.costs(each, truth) for each in problem.every() if each.batch_size < 8]
    assert problem.costs(outcome.winner, truth)[0] <= min(kept)[0] * 1.02


def test_where_memory_runs_out_nothing_larger_is_tried():
    """A batch of eight doesn't fit although the plan says so: sixteen isn't tried after it."""
    problem = Problem(workload=offline())
    outcome, engine, _ = run(
        problem,
        fails=lambda configuration, _: "out_of_memory" if configuration.batch_size >= 8 else None,
        budget_s=40.0,
    )
    tried = [configuration.batch_size for configuration, _, _ in engine.calls]
    failed_at = next(index for index, size in enumerate(tried) if size == 8) if 8 in tried else len(tried)
    assert 16 not in tried[failed_at:]
    assert len([trial for trial in outcome.confirmation.trials if trial.state == "failed"]) <= 4
    assert outcome.winner.batch_size == 4


def test_an_engine_that_runs_nothing_is_given_up():
    outcome, _, _ = run(Problem(workload=offline()), fails=lambda configuration, phase: "hung", prepare_s=0.001)
    assert (outcome.winner, outcome.confirmation.stopped) == (None, "failed")
    assert len(outcome.confirmation.failures) <= 10
    assert outcome.confirmation.default is None
    assert outcome.confirmation.runs == ()


@pytest.mark.parametrize("budget_s", [2.0, 5.0, 10.0, 20.0])
def test_the_budget_is_kept(budget_s):
    """To within the part that is running when it is over."""
    problem = Problem(workload=offline())
    for seed in range(4):
        outcome, _, _ = run(problem, bias=slow_beyond(4, 1.25), seed=seed, budget_s=budget_s)
        longest = max((run.median_s for run in outcome.confirmation.runs), default=0.0)
        assert outcome.confirmation.spent_s <= budget_s + 2 * longest
        assert outcome.confirmation.budget_s == budget_s


def test_too_little_time_for_any_prompt_leaves_the_prediction():
    """What was run of decode corrects the model; nothing is named a winner that was not run to its end."""
    outcome, _, _ = run(Problem(workload=offline()), budget_s=0.5)
    assert (outcome.winner, outcome.confirmation.stopped) == (None, "budget")


def test_the_same_seed_gives_the_same_trials():
    problem = Problem(workload=offline())
    first, again = (run(problem, bias=slow_beyond(4, 1.25), seed=3, budget_s=30.0)[0] for _ in range(2))
    assert first.confirmation == again.confirmation
    assert first.winner == again.winner


def test_chat_prefers_the_sooner_first_token_among_equal_steps():
    """Decode doesn't depend on the chunk; prompts take the longer the more tokens go through at once, unpredicted."""
    problem = Problem(workload=offline(name="chat", max_batch=1))

    def bias(part):
        return (part.size / 32) ** 0.11 if part.phase == "prefill" else 1.0

    for seed in range(5):
        outcome, _, truth = run(problem, bias=bias, seed=seed, budget_s=60.0)
        tpot_s, ttft_s = problem.costs(outcome.winner, truth)
        assert outcome.winner.prefill_chunk == 32
        assert tpot_s <= best_of(problem, truth)[0] * (1 + NOISE)
        assert ttft_s <= min(problem.costs(each, truth)[1] for each in problem.every()) * (1 + 2 * NOISE)


def test_layers_move_to_a_gpu_that_proves_faster():
    """Predictions split the layers; on the GPU they take less than predicted, all the more of them belong there."""
    problem = Problem(workload=offline(), available_bytes={"cpu": 2**30, "cuda:0": 2**30})
    outcome, _, _ = run(problem, bias=lambda part: 0.7 if dict(part.device_layers).get("cuda:0") else 1.0)
    assert outcome.winner.device_layers == {"cuda:0": 4}
    assert outcome.winner.decode_threads == 1, "threads are of no consequence, so the fewest"
    assert "everything on the GPU" in {trial.origin for trial in outcome.confirmation.trials}
    assert {report.device for report in outcome.confirmation.corrections} == {"cpu", "cuda:0"}


def test_runs_of_earlier_searches_are_known():
    """A second search for the same workload has nothing left to run but what the first one left open."""
    problem = Problem(workload=offline())
    first, _, _ = run(problem)
    again, _, _ = run(problem, known=first.confirmation.runs)
    assert again.winner == first.winner
    assert again.confirmation.spent_s < first.confirmation.spent_s / 2
    before = {found.part: found.samples_s for found in first.confirmation.runs}
    for found in again.confirmation.runs:
        assert found.samples_s[: len(before.get(found.part, ()))] == before.get(found.part, ())


def test_runs_surprise_a_cost_model_that_was_corrected_by_them_as_much_as_any_other():
    """A search that takes up another one's runs is as careful as that was where they differed from predictions."""
    problem = Problem(workload=offline())
    first, _, _ = run(problem, bias=lambda part: 1.5 if part.threads == 6 else 0.8)
    bounds = []
    for cost_model in (problem.cost_model, first.cost_model):
        runs = Runs(problem.workload, NOISE)
        axes = {"threads": problem.threads, "batches": problem.batches, "chunks": problem.chunks}
        belief = Belief(cost_model, problem.model, problem.workload, problem.room, **axes, runs=runs, noise=NOISE)
        for found in first.confirmation.runs:
            runs.add(found)
            belief.learn()
        bounds.append([belief.bound(belief.space.point(each)) for each in problem.every()])
    assert bounds[0] == bounds[1]


def test_the_corrected_model_predicts_what_was_run():
    problem = Problem(workload=offline())
    outcome, _, _ = run(problem, bias=lambda part: 1.2 if part.phase == "decode" else 0.9)
    for found in outcome.confirmation.runs:
        predicted = sum(outcome.cost_model.predict(problem.model, found.part).values())
        assert predicted == pytest.approx(found.median_s, rel=0.03)
    assert {report.phase: report.factor for report in outcome.confirmation.corrections} == pytest.approx(
        {"decode": 1.2, "prefill": 0.9}, rel=0.02
    )


def test_progress_is_told():
    told = []
    run(Problem(workload=offline()), running=lambda share, tried: told.append((share, tried)))
    assert [tried for _, tried in told] == list(range(1, len(told) + 1))
    assert all(0 < share <= 1 for share, _ in told)


def test_a_search_is_silent_and_leaves_optunas_log_level_alone(capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    run(Problem(workload=offline()))
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_an_interval_is_told_once_there_are_samples_enough():
    outcome, _, _ = run(Problem(workload=offline(name="chat", max_batch=1)), budget_s=60.0)
    assert 0 < outcome.confirmation.chosen.relative_interval < 0.02
    assert math.isfinite(outcome.confirmation.chosen.ttft_s)


def test_a_finalist_that_fails_when_run_again_keeps_its_samples():
    """The first prompt of each is fine, the second crashes the engine: what is known of it counts."""
    problem, seen = Problem(workload=offline()), Counter()

    def fails(configuration, phase):
        key = (phase, configuration.prefill_threads, configuration.prefill_chunk)
        seen[key] += 1
        return "crashed" if phase == "prefill" and seen[key] > 1 else None

    def alike(part):
        """Prompts take as long in pieces of 128 tokens as in one, so that only more samples could tell them apart."""
        predicted = problem.truth()
        whole, own = (sum(predicted(replace(part, size=size)).values()) for size in (256, part.size))
        return whole / own if part.phase == "prefill" and part.size == 128 else 1.0

    outcome, _, truth = run(problem, bias=alike, fails=fails, budget_s=40.0)
    assert {failure.kind for failure in outcome.confirmation.failures} == {"crashed"}
    assert all(trial.state != "failed" for trial in outcome.confirmation.trials)
    assert outcome.winner is not None
    assert problem.costs(outcome.winner, truth)[0] <= best_of(problem, truth)[0] * 1.02


def test_time_that_starting_took_is_counted():
    """Preparing the first configuration takes half of the budget, so no other one is run to its end."""
    outcome, _, _ = run(Problem(workload=offline()), budget_s=6.0, prepare_s=2.5)
    assert outcome.confirmation.stopped == "budget"
    first, *others = outcome.confirmation.trials
    assert first.state == "complete"
    assert {trial.state for trial in others} == {"pruned"}
    assert "there was no time left to run it to its end" in {trial.reason for trial in others}


def test_a_step_near_the_limit_is_made_sure_of_before_a_prompt_is_run():
    """A few noisy steps over the limit by 2 % could be chance; more of them show that they aren't."""
    free = Problem(workload=offline())
    eight = replace(free.default, batch_size=8, decode_threads=6)
    limit_s = 1.02 * sum(free.truth()(part_of(eight, free.workload, "decode")).values())
    problem = Problem(workload=offline(max_tpot_s=limit_s))
    outcome, engine, _ = run(
        problem, bias=lambda part: 1.04 if part.phase == "decode" else 1.0, noise=0.001, believed=0.05
    )
    near = [t for t in outcome.confirmation.trials if t.configuration.batch_size == 8 and t.state == "infeasible"]
    assert near
    assert all(trial.measured is None for trial in near)
    assert {config.batch_size for config, phase, _ in engine.calls if phase == "prefill"}.isdisjoint({8, 16})


def test_a_limit_that_is_kept_against_expectation_is_found_out():
    """No step is predicted to be so short, but all are shorter than predicted."""
    free = Problem(workload=offline())
    fastest = min(sum(free.truth()(part_of(each, free.workload, "decode")).values()) for each in free.every())
    problem = Problem(workload=offline(max_tpot_s=0.95 * fastest))
    outcome, _, _ = run(problem, bias=lambda part: 0.8)
    assert outcome.confirmation.chosen.tpot_s <= 0.95 * fastest
    assert outcome.confirmation.trials[0].origin == "default", "nothing is predicted to be feasible"


def test_runs_of_another_workload_correct_predictions_but_are_no_figures():
    """They were taken at other lengths."""
    first, _, _ = run(Problem(workload=offline()), bias=lambda part: 1.2)
    other = Problem(workload=offline(prompt_tokens=128, output_tokens=32))
    outcome, engine, _ = run(other, bias=lambda part: 1.2, known=first.confirmation.runs)
    assert all(found in outcome.confirmation.runs for found in first.confirmation.runs)
    contexts = {found.part.context for found in outcome.confirmation.runs}
    assert contexts == {256, 256 + 64, 128, 128 + 16}
    assert engine.calls, "nothing is known of this workload's own figures"
    assert outcome.confirmation.corrections[0].runs > first.confirmation.corrections[0].runs


def test_a_default_that_breaks_a_limit_is_not_run_and_does_not_stay():
    """It decodes on one thread, which takes longer than is allowed."""
    free = Problem(workload=offline())
    one = replace(free.default, decode_threads=1)
    limit_s = 0.5 * sum(free.truth()(part_of(one, free.workload, "decode")).values())
    problem = Problem(workload=offline(max_tpot_s=limit_s))
    problem.default = one
    outcome, engine, _ = run(problem)
    (trial,) = [trial for trial in outcome.confirmation.trials if trial.origin == "default"]
    assert (trial.state, trial.measured, outcome.confirmation.default) == ("infeasible", None, None)
    assert one not in engine.prepared
    assert outcome.confirmation.chosen.tpot_s <= limit_s


def test_a_default_without_time_is_taken_to_do_what_is_expected():
    """It is as good as the best as far as is known, and there was no time to run it: what was run is chosen."""
    problem = Problem(workload=offline())
    outcome, _, _ = run(problem, budget_s=5.5)
    assert outcome.confirmation.stopped == "budget"
    assert outcome.confirmation.default is None
    assert outcome.winner == outcome.confirmation.trials[0].configuration


def test_a_time_to_first_token_that_nothing_keeps_leaves_no_winner():
    free = Problem(workload=offline())
    fastest_s = min(free.costs(each, free.truth())[1] for each in free.every())
    problem = Problem(workload=offline(max_ttft_s=1.1 * fastest_s))
    outcome, _, _ = run(problem, bias=lambda part: 1.3 if part.phase == "prefill" else 1.0)
    assert outcome.winner is None
    reasons = {trial.reason for trial in outcome.confirmation.trials if trial.state == "infeasible"}
    assert reasons == {"it breaks the limit on the time to the first token"}


def test_thousands_of_placements_are_searched():
    """Two GPUs that hold a part of the layers each: the search decides among 5,000 ways to split forty layers."""
    layers = Problem().model.layers[:1] * 40
    problem = Problem(
        workload=offline(),
        model=replace(Problem().model, layers=layers),
        available_bytes={"cpu": 2**30, "cuda:0": 24 * 2**20, "cuda:1": 12 * 2**20},
    )
    outcome, engine, truth = run(problem, budget_s=100.0)
    assert len({(*each.device_layers.items(), each.head_device) for each in engine.prepared}) > 1
    assert set(outcome.winner.device_layers) >= {"cuda:0", "cuda:1"}
    first = outcome.confirmation.trials[0].configuration
    assert problem.costs(outcome.winner, truth)[0] <= problem.costs(first, truth)[0] * 1.01


def test_a_search_needs_no_optuna_until_it_searches():
    """A re-computed result imports the search's types, and is to be quick."""
    code = "import sys, autotune.search.measured; assert not {'optuna', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_time_only_for_what_is_clearly_not_the_best_leaves_the_corrected_predictions():
    """One prompt of the predicted best takes eight times as long as predicted, and then the time is up."""
    problem = Problem(workload=offline())

    def bias(part):
        return 8.0 if part.phase == "prefill" and (part.threads, part.size) == (6, 256) else 1.0

    outcome, _, _ = run(problem, bias=bias, budget_s=8.0)
    (trial,) = outcome.confirmation.trials
    assert (trial.state, outcome.confirmation.stopped) == ("complete", "budget")
    assert (outcome.winner, outcome.confirmation.chosen) == (None, None)
