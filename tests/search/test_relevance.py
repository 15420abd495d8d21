"""Which points can still change the decision: on recorded hosts, whose benchmark is told point by point."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.bench.plan import plan
from autotune.bench.rivals import REFERENCE, choose_kernels, gates
from autotune.bench.sampler import COARSE_INTERVAL, TARGET_INTERVAL
from autotune.evidence import workload_of
from autotune.model.analyse import analyse
from autotune.model.memory import Room
from autotune.options import Options
from autotune.records import Failure, Measurement
from autotune.search.relevance import Relevance
from autotune.store import recording
from tests.hosts.reveal import decided, regret, relevance_of, reveal, tasks_of

HOSTS = Path(__file__).parents[1] / "hosts"
SMALL = "bitnet-b1.58-2B-4T"
LARGE = str(HOSTS / "synthetic" / "models" / "Llama-70B-class.json")
NATIVE = "xeon-2-threads-native"

CASES = [
    (NATIVE, SMALL),
    ("xeon-2-threads-numpy", SMALL),
    ("synthetic/edge-4gb-board", SMALL),
    ("synthetic/desktop-p-and-e-cores", SMALL),
    ("synthetic/server-slow-gpu", SMALL),
    ("synthetic/office-4gb-gpu", "Llama3-8B-1.58-100B-tokens"),
    ("synthetic/server-two-sockets-unequal-gpus", LARGE),
]
"""CPUs of few threads and of many, even and uneven ones; GPUs that lose, that hold most layers, and all but one."""


class Recorded:
    """A recorded host with all that was timed on it, and a model and workload to decide for."""

    def __init__(self, host, model, workload, **options):
        held = recording.read(HOSTS / f"{host}.json")
        self.host = held.host
        self.full = held.campaigns[0]
        self.model = analyse(model, machine=self.host.cpu.architecture)
        self.workload = workload_of(Options(workload=workload, **options), self.model, self.host)
        self.tasks = tasks_of(self.full, [self.model], self.host, self.workload)
        self.relevance = relevance_of([self.model], self.host, self.workload, self.tasks)

    @functools.cached_property
    def revealed(self):
        return reveal(self.full, self.tasks, self.relevance)

    @functools.cached_property
    def regret(self):
        return regret(self.full, self.revealed.campaign, self.model, self.host, self.workload)

    def with_outcomes(self, outcomes):
        return replace(self.full, outcomes=tuple(outcomes))

    def wanted(self, outcomes):
        """The points that are asked for next, and how narrow their intervals are to be."""
        wanted = self.relevance(self.with_outcomes(outcomes))
        return {self.tasks[index].point: width for index, width in wanted.items()}


@functools.cache
def recorded(host=NATIVE, model=SMALL, workload="server"):
    return Recorded(host, model, workload)


def on_cpu(campaign, **fields):
    """Outcomes of the CPU whose points have these fields."""
    return [
        found
        for found in campaign.outcomes
        if found.point.device == "cpu" and all(getattr(found.point, name) == value for name, value in fields.items())
    ]


class TestDecision:
    """What is decided in the end."""

    @pytest.mark.parametrize("workload", ["chat", "server", "offline"])
    @pytest.mark.parametrize(("host", "model"), CASES, ids=[host for host, _ in CASES])
    def test_it_is_that_of_the_full_grid_or_its_equal_at_about_half_the_points_or_fewer(self, host, model, workload):
        case = recorded(host, model, workload)
        assert case.regret.feasible
        assert case.regret.costs[0] <= 0.02
        assert len(on_cpu(case.revealed.campaign)) <= 0.6 * len(on_cpu(case.full))
        assert len(case.revealed.rounds) <= 6

    @pytest.mark.parametrize("workload", ["chat", "server", "offline"])
    def test_fewer_samples_are_taken_as_well(self, workload):
        case = recorded(workload=workload)
        taken, all_samples = (
            sum(len(found.samples_s) for found in campaign.measurements())
            for campaign in (case.revealed.campaign, case.full)
        )
        assert taken < 0.4 * all_samples

    def test_what_wins_was_timed_itself(self):
        """Beyond eight cores of one kind nothing follows from other thread counts."""
        case = recorded("synthetic/desktop-p-and-e-cores", workload="offline")
        chosen = case.regret.chosen
        at = {"op": "matmul", "threads": chosen.prefill_threads, "m": chosen.prefill_chunk}
        sites = {(site.n_out, site.k_in) for site in case.model.layers[0].sites}
        timed = {(found.point.n_out, found.point.k_in) for found in on_cpu(case.revealed.campaign, **at)}
        assert sites <= timed

    def test_where_a_gpu_clearly_wins_the_cpu_is_timed_no_further_than_any_decision_needs(self):
        case = recorded("synthetic/laptop-8gb-gpu")
        assert case.regret.best.device_layers == {"cuda:0": len(case.model.layers)}
        assert len(case.revealed.rounds) == 1
        assert len(on_cpu(case.revealed.campaign)) < 0.2 * len(on_cpu(case.full))

    def test_a_batch_that_may_keep_the_limit_or_not_is_timed(self):
        """The largest within 100 ms per token wins, so what decides is on which side of it the next one is."""
        case = recorded()
        chosen = case.regret.chosen
        assert case.workload.max_tpot_s is not None
        assert chosen.batch_size < case.workload.max_batch
        timed = {found.point.m for found in on_cpu(case.revealed.campaign, op="matmul", threads=2, k_in=2560)}
        assert {chosen.batch_size, 2 * chosen.batch_size} <= timed


class TestFirstRound:
    """What every decision needs, before anything is known."""

    def test_ceilings_and_every_site_at_one_token_on_the_fewest_and_the_most_threads(self):
        case = recorded()
        wanted = case.wanted([])
        sites = {(site.n_out, site.k_in) for site in (*case.model.layers[0].sites, case.model.head)}
        for threads in (1, 2):
            at_one = [point for point in wanted if (point.op, point.m, point.threads) == ("matmul", 1, threads)]
            assert {(point.n_out, point.k_in) for point in at_one} == sites
        ceilings = {task.point for task in case.tasks if task.point.op in ("read", "peak")}
        assert {point for point, width in wanted.items() if width == TARGET_INTERVAL} == ceilings
        assert {"attention", "layer_ops"} < {point.op for point in wanted}
        assert len(wanted) < 0.4 * len(case.tasks)

    def test_a_prompt_of_one_token_needs_no_attention_of_many(self):
        case = Recorded(NATIVE, SMALL, "chat", prompt=1)
        wanted = case.wanted([])
        assert {point.m for point in wanted if point.op == "attention"} == {1}

    def test_it_comes_in_the_order_of_the_plan(self):
        """So a budget that ends early still has what matters most."""
        case = recorded()
        wanted = list(case.relevance(case.with_outcomes([])))
        assert wanted == sorted(wanted)

    def test_rivals_and_what_may_spare_one_of_them_come_along(self):
        case = recorded()
        wanted = set(case.relevance(case.with_outcomes([])))
        points = [task.point for task in case.tasks]
        spared_by = gates(points)
        for index in wanted:
            own = points[index]
            assert {other for other, point in enumerate(points) if replace(point, kernel=own.kernel) == own} <= wanted
            assert set(spared_by[index]) <= wanted

    def test_where_not_even_that_can_be_timed_nothing_is_asked_for(self):
        case = recorded()
        failed = [Failure(task.point, "crashed", "died") for task in case.tasks]
        assert case.wanted(failed) == {}

    def test_without_the_ceilings_nothing_else_is_asked_for(self):
        """They failed: the benchmark is over, and its caller says why."""
        case = recorded()
        tried = [
            Failure(found.point, "crashed", "died") if found.point.op in ("read", "peak") else found
            for found in case.revealed.campaign.outcomes
        ]
        assert case.wanted(tried) == {}


class TestLaterRounds:
    """What is asked for once something is known."""

    def test_what_failed_is_not_asked_for_again(self):
        case = recorded()
        wanted = case.wanted([])
        by_point = {found.point: found for found in case.full.outcomes}
        first = [by_point[point] for point in wanted if point in by_point]
        second = set(case.wanted(first)) - set(wanted)
        assert second
        failed = [Failure(point, "crashed", "died") for point in second]
        assert not second & set(case.wanted([*first, *failed]))

    def test_what_matters_is_sampled_on_and_what_is_new_coarsely_at_first(self):
        case = recorded(workload="chat")
        by_point = {found.point: found for found in case.full.measurements()}

        def coarse(point):
            found = by_point[point]
            return replace(found, samples_s=found.samples_s[:6], stopped="enough")

        first = [coarse(point) for point in case.wanted([]) if point in by_point]
        wanted = {point: width for point, width in case.wanted(first).items() if point.kernel != REFERENCE}
        tried = {found.point for found in first}
        assert {width for point, width in wanted.items() if point not in tried} == {COARSE_INTERVAL}
        assert TARGET_INTERVAL in {width for point, width in wanted.items() if point in tried}

    def test_the_reference_is_not_asked_for_where_it_was_spared(self):
        case = recorded()
        outcomes = [found for found in case.full.outcomes if found.point.kernel != REFERENCE]
        assert case.relevance.covers(case.with_outcomes(outcomes))

    def test_where_no_configuration_fits_the_memory_nothing_is_asked_for(self):
        case = recorded()
        relevance = Relevance(
            [case.model],
            case.workload,
            case.tasks,
            room=lambda campaign, devices: Room(dict.fromkeys(devices, 1), dict.fromkeys(devices, 0)),
            threads=lambda cost_model: [1, 2],
        )
        assert relevance(case.revealed.campaign) == {}

    def test_a_limit_that_no_prediction_keeps_is_looked_into_as_long_as_one_may(self):
        """A limit just below the best prediction: only surer times tell whether it can be kept."""
        case = recorded(workload="chat")
        by_point = {found.point: found for found in case.full.outcomes}
        first = [by_point[point] for point in case.wanted([]) if point in by_point]
        evaluator, best, _ = decided(case.full, case.model, case.host, case.workload)
        tpot_ms = 1e3 * float(evaluator.at(best).tpot_s)
        for share, asked in ((0.995, True), (0.1, False)):
            limited = Recorded(NATIVE, SMALL, "chat", max_tpot_ms=share * tpot_ms)
            coarse = [
                replace(found, samples_s=found.samples_s[:6], stopped="enough")
                if isinstance(found, Measurement) and found.stopped != "beaten"
                else found
                for found in first
            ]
            assert bool(limited.wanted(coarse)) == asked


class TestCovering:
    """Whether a saved benchmark answers another question."""

    @pytest.mark.parametrize("workload", ["chat", "server", "offline"])
    def test_the_full_grid_answers_all_workloads(self, workload):
        case = recorded(workload=workload)
        assert case.relevance.covers(case.full)

    @pytest.mark.parametrize("workload", ["chat", "server", "offline"])
    def test_what_the_order_timed_answers_the_workload_that_it_was_for(self, workload):
        case = recorded(workload=workload)
        assert case.relevance.covers(case.revealed.campaign)

    def test_what_was_timed_for_one_sequence_does_not_answer_for_many(self):
        for_chat = recorded(workload="chat").revealed.campaign
        assert not recorded(workload="offline").relevance.covers(for_chat)

    def test_another_models_benchmark_answers_nothing(self):
        case = recorded()
        other = recorded("synthetic/server-two-sockets-unequal-gpus", LARGE)
        assert not case.relevance.covers(other.full)


class TestFormats:
    """Several weight formats, of which one is clearly slower."""

    def test_the_one_that_loses_is_timed_no_further_than_any_decision_needs(self):
        case = recorded()
        slow = analyse(SMALL, "F16")
        kernels = choose_kernels(case.full.kernels, ["I2_S", "F16"], None)
        models = [case.model, slow]
        tasks = plan(models, case.host, case.workload, kernels, quick=False)
        recorded_at = {found.point.m for found in case.full.outcomes}
        tasks = tuple(task for task in tasks if task.point.m in recorded_at)
        known = {found.point: found for found in case.full.outcomes}
        made_up = [
            replace(known[like], point=task.point, samples_s=tuple(8 * time_s for time_s in known[like].samples_s))
            for task in tasks
            if task.point not in known
            and task.point.op == "matmul"
            and isinstance(known.get(like := replace(task.point, format="I2_S")), Measurement)
        ]
        full = case.with_outcomes([*case.full.outcomes, *made_up])
        found = reveal(full, tasks, relevance_of(models, case.host, case.workload, tasks))
        layers = {(site.n_out, site.k_in) for site in case.model.layers[0].sites}
        timed = {"I2_S": 0, "F16": 0}
        for outcome in found.campaign.outcomes:
            if outcome.point.op == "matmul" and (outcome.point.n_out, outcome.point.k_in) in layers:
                timed[outcome.point.format] += outcome.point.kernel == "native"
        assert 0 < timed["F16"] < timed["I2_S"]
