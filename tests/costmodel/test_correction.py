"""Corrections by runs of synthetic hosts, whose truth is made up so that it is known, and of a recorded one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.correction import NOISE_FLOOR
from autotune.costmodel.device import kinds_of
from autotune.costmodel.heldout import fit
from autotune.costmodel.model import CostModel
from autotune.costmodel.passes import Passes
from autotune.model.analyse import analyse
from autotune.model.memory import Room
from autotune.records import Layer, Part, PartRun
from autotune.records.runs import part_of
from autotune.search.evaluate import build_evaluator
from autotune.search.space import Point
from autotune.store import recording
from tests.builders import build_model, build_workload
from tests.costmodel.conftest import HOSTS
from tests.costmodel.synthetic import HEAD, LONG, SMALL, WIDE, SyntheticHost, campaign_of
from tests.costmodel.synthetic_gpu import SyntheticGpu, with_gpu

HOST, GPU = SyntheticHost(utilisation=0.5), SyntheticGpu(bytes_per_s=1e11, operations_per_s=1e13)
MODEL = build_model(layers=(Layer((SMALL, WIDE, WIDE, LONG)),) * 4, head=HEAD)
WORKLOAD = build_workload(prompt_tokens=100, output_tokens=56, max_batch=16)
CAMPAIGN, FORMS = campaign_of(HOST.outcomes()), {"cpu": "sum"}
PLAIN = CostModel(CAMPAIGN, FORMS)
THREADS, BATCHES, CHUNKS = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8, 16), (16, 32, 64)


def decode(threads=2, batch=4, layers=(("cpu", 4),), head="cpu", context=WORKLOAD.decode_context):
    return Part("decode", layers, head, threads, batch, context)


def prefill(threads=2, chunk=32, layers=(("cpu", 4),), head="cpu", prompt=WORKLOAD.prompt_tokens):
    return Part("prefill", layers, head, threads, chunk, prompt)


def run(part, factor=1.0, samples=20, cost_model=PLAIN, **of_device):
    """A part that takes its predicted time times a factor, or another one on some devices, in all samples alike."""
    shares = {
        device: (time_s * of_device.get(device.replace(":", ""), factor),) * samples
        for device, time_s in cost_model.predict(MODEL, part, corrected=False).items()
    }
    return PartRun(part, tuple(map(sum, zip(*shares.values(), strict=True))), shares)


def steps(cost_model, sigmas=0.0, **overrides):
    axes = {"threads": THREADS, "batches": BATCHES, "chunks": CHUNKS} | overrides
    return cost_model.steps(MODEL, WORKLOAD, axes["threads"], axes["batches"], axes["chunks"], sigmas=sigmas)


def log_factors(cost_model, **overrides):
    """Logarithms of what correction multiplies decode and prefill times of the CPU by, shapes (T, B) and (T, C)."""
    corrected, plain = steps(cost_model, **overrides), steps(PLAIN, **overrides)
    return tuple(
        np.log(getattr(corrected, name)[0, 0] / getattr(plain, name)[0, 0])
        for name in ("decode_layer_s", "prefill_layer_s")
    )


def sds(cost_model):
    """Posterior standard deviations of the logarithm: what one sigma raises times by."""
    raised, mean = steps(cost_model, 1.0), steps(cost_model)
    return tuple(
        np.log(getattr(raised, name)[0, 0] / getattr(mean, name)[0, 0])
        for name in ("decode_layer_s", "prefill_layer_s")
    )


def tables(costs):
    return {name: table for name, table in vars(costs).items() if name.endswith("_s")}


def assert_same(costs, others):
    for name, table in tables(costs).items():
        assert (table == getattr(others, name)).all(), name


class TestFactors:
    def test_without_runs_steps_are_bit_for_bit_what_was_summed_up(self):
        passes = Passes(WORKLOAD, BATCHES, CHUNKS)
        summed_up = PLAIN.models["cpu"].steps(MODEL, kinds_of(MODEL)[1], passes, np.array(THREADS))
        for costs in (steps(PLAIN), steps(PLAIN.corrected_by([], MODEL))):
            for name in ("decode_layer_s", "decode_ends_s", "prefill_layer_s", "prefill_ends_s"):
                assert (getattr(costs, name)[0] == getattr(summed_up, name)).all()
        assert PLAIN.predict(MODEL, decode()) == PLAIN.predict(MODEL, decode(), corrected=False)
        assert PLAIN.corrections() == ()

    def test_a_biased_model_with_a_trend_over_the_batch_is_right_at_sizes_that_were_not_run(self):
        """Made-up truth: 12 % slower than predicted, and 2 % more with every doubling of the batch or chunk."""

        def truth(size):
            return 1.12 * 1.02 ** math.log2(size)

        runs = [run(decode(threads, batch), truth(batch)) for threads in (1, 4, 8) for batch in (1, 4, 16)]
        runs += [run(prefill(threads, chunk), truth(chunk)) for threads in (1, 8) for chunk in (16, 64)]
        decoding, prefilling = map(np.exp, log_factors(PLAIN.corrected_by(runs, MODEL)))
        assert decoding == pytest.approx(np.tile(list(map(truth, BATCHES)), (len(THREADS), 1)), rel=0.02)
        assert prefilling == pytest.approx(np.tile(list(map(truth, CHUNKS)), (len(THREADS), 1)), rel=0.02)

    def test_one_run_moves_its_own_point_nearly_fully_and_all_others_towards_it(self):
        told = math.log(1.2)
        decoding, prefilling = log_factors(PLAIN.corrected_by([run(decode(4, 4), 1.2)], MODEL))
        assert decoding[3, 2] == pytest.approx(told, rel=0.01)
        assert decoding.max() == decoding[3, 2]
        assert (decoding > 0.7 * told).all()
        assert (prefilling > 0.3 * told).all()
        assert (prefilling < 0.6 * told).all()

    def test_far_from_what_was_run_the_offset_alone_is_left(self):
        runs = [run(decode(4, 4), 1.2)]
        (near, _), (far, _) = (
            log_factors(PLAIN.corrected_by(runs, MODEL), threads=(1, 1 << doublings), batches=(1, 1 << doublings))
            for doublings in (14, 20)
        )
        assert near[-1, -1] == pytest.approx(far[-1, -1], abs=1e-12)
        assert 0.7 * math.log(1.2) < far[-1, -1] < 0.9 * math.log(1.2)

    def test_layers_and_head_are_corrected_alike(self):
        corrected, plain = steps(PLAIN.corrected_by([run(decode(), 1.3)], MODEL)), steps(PLAIN)
        for name in ("decode", "prefill"):
            layers, ends = (
                getattr(corrected, f"{name}_{of}_s") / getattr(plain, f"{name}_{of}_s") for of in ("layer", "ends")
            )
            assert layers[:, 0] == pytest.approx(ends)

    def test_what_was_run_counts_for_another_context_less_than_for_its_own(self):
        found = PLAIN.corrected_by([run(decode(), 1.2)], MODEL)
        factors = [
            found.predict(MODEL, part)["cpu"] / found.predict(MODEL, part, corrected=False)["cpu"]
            for part in (decode(), decode(context=512), decode(context=4096))
        ]
        assert factors == sorted(factors, reverse=True)
        assert factors[0] == pytest.approx(1.2, rel=0.002)
        assert factors[-1] > 1.1

    def test_the_first_token_of_all_has_no_context(self):
        part = decode(context=0)
        found = PLAIN.corrected_by([run(part, 1.2)], MODEL)
        assert found.predict(MODEL, part)["cpu"] == pytest.approx(run(part, 1.2).median_s, rel=0.002)

    def test_a_chunk_longer_than_the_prompt_is_the_prompt(self):
        found = PLAIN.corrected_by([run(prefill(chunk=100), 1.2)], MODEL)
        assert found.predict(MODEL, prefill(chunk=512)) == found.predict(MODEL, prefill(chunk=100))

    def test_runs_replace_those_before_and_leave_the_model_they_correct_as_it_was(self):
        before = steps(PLAIN)
        twice = PLAIN.corrected_by([run(decode(1, 1), 1.5)], MODEL).corrected_by([run(decode(), 1.2)], MODEL)
        assert_same(steps(twice), steps(PLAIN.corrected_by([run(decode(), 1.2)], MODEL)))
        assert_same(steps(PLAIN), before)

    def test_a_cost_model_built_with_runs_is_one_corrected_by_them(self):
        runs = [run(decode(), 1.2), run(prefill(), 1.1)]
        assert_same(steps(CostModel(CAMPAIGN, FORMS, runs, MODEL)), steps(PLAIN.corrected_by(runs, MODEL)))

    def test_one_run_that_disagrees_with_all_others_is_right_itself_and_changes_little_else(self):
        """As on more threads than the host can spare: it took three times as long."""
        usual = [run(decode(threads, batch), 1.1) for threads in (1, 2, 4) for batch in (1, 8)]
        found = PLAIN.corrected_by([*usual, run(decode(8, 8), 3.0)], MODEL)
        decoding, prefilling = map(np.exp, log_factors(found))
        odd = (THREADS.index(8), BATCHES.index(8))
        assert decoding[odd] == pytest.approx(3.0, rel=0.01)
        decoding[odd] = 1.1
        assert decoding == pytest.approx(np.full_like(decoding, 1.1), rel=0.03)
        assert prefilling == pytest.approx(np.full_like(prefilling, 1.05), rel=0.03)

    def test_odd_runs_leave_each_other_alone_however_many_places_they_share(self):
        """Made-up truth: two of eight combinations take twice and three times as long; one was run in two splits."""
        usual = [run(decode(threads, batch), 1.1) for threads in (1, 2, 4) for batch in (1, 8)]
        odd = [
            run(decode(8, 8), 3.0),
            run(decode(8, 8, (("cpu", 2), ("cuda:0", 2))), 3.0, cost_model=GPUS),
            run(decode(8, 1), 2.0),
        ]
        found = GPUS.corrected_by([*usual, *odd], MODEL)
        for part, factor in ((decode(8, 8), 3.0), (decode(8, 1), 2.0), (decode(8, 4), 1.1), (decode(3, 4), 1.1)):
            ratio = found.predict(MODEL, part)["cpu"] / found.predict(MODEL, part, corrected=False)["cpu"]
            assert ratio == pytest.approx(factor, rel=0.03)

    def test_a_host_on_which_all_runs_take_twice_as_long_has_no_odd_ones(self):
        runs = [run(decode(threads, batch), 2.0) for threads in (1, 4) for batch in (1, 8)]
        decoding, _ = map(np.exp, log_factors(PLAIN.corrected_by(runs, MODEL)))
        assert decoding == pytest.approx(np.full_like(decoding, 2.0), rel=0.05)

    def test_a_parts_corrected_seconds_are_those_of_the_corrected_steps(self):
        found = PLAIN.corrected_by([run(decode(4, 4), 1.2), run(decode(1, 16), 1.1), run(prefill(2, 16), 1.3)], MODEL)
        costs = steps(found)
        for part, layer_s, ends_s in (
            (decode(3, 8), costs.decode_layer_s[0, 0, 2, 3], costs.decode_ends_s[0, 2, 3]),
            (prefill(3, 64), costs.prefill_layer_s[0, 0, 2, 2], costs.prefill_ends_s[0, 2, 2]),
        ):
            assert found.predict(MODEL, part)["cpu"] == pytest.approx(4 * layer_s + ends_s, rel=1e-12)


class TestUncertainty:
    def test_it_shrinks_near_runs_and_stays_between_the_noise_and_what_was_believed_before(self):
        few = [run(decode(4, 4))]
        many = [run(decode(threads, batch)) for threads in THREADS for batch in BATCHES]
        (before, before_prefill), (one, one_prefill), (all_run, _) = (
            sds(PLAIN.corrected_by(runs, MODEL)) for runs in ([], few, many)
        )
        assert before == pytest.approx(np.full_like(before, before[0, 0]))
        assert 0.1 < before[0, 0] < 0.13
        assert (one < before).all()
        assert (one_prefill < before_prefill).all()
        assert one.argmin() == np.ravel_multi_index((3, 2), one.shape)
        assert (all_run < one + 1e-12).all()
        for sd in (before, one, all_run):
            assert (sd >= NOISE_FLOOR * (1 - 1e-9)).all()

    def test_more_sigmas_are_slower_everywhere_with_or_without_runs(self):
        for cost_model in (PLAIN, PLAIN.corrected_by([run(decode(), 1.2)], MODEL)):
            lower, mean, upper = (tables(steps(cost_model, sigmas)) for sigmas in (-2.0, 0.0, 2.0))
            for name in ("decode_layer_s", "decode_ends_s", "prefill_layer_s", "prefill_ends_s"):
                assert (lower[name] < mean[name]).all()
                assert (mean[name] < upper[name]).all()
                assert lower[name] * upper[name] == pytest.approx(mean[name] ** 2)

    @pytest.mark.parametrize(("fewer", "more"), [(1, 2), (2, 5), (5, 20)])
    def test_more_samples_tell_more(self, fewer, more):
        less, known = (sds(PLAIN.corrected_by([run(decode(), samples=samples)], MODEL))[0] for samples in (fewer, more))
        assert (known < less).all()

    def test_samples_that_scatter_tell_less(self):
        calm = run(decode(), samples=4)
        wild = PartRun(
            calm.part,
            samples_s=(scatter := tuple(calm.median_s * each for each in (0.8, 1, 1, 1.2))),
            device_s={"cpu": scatter},
        )
        assert (sds(PLAIN.corrected_by([calm], MODEL))[0] < sds(PLAIN.corrected_by([wild], MODEL))[0]).all()


class TestSeveralRuns:
    def test_runs_of_the_same_part_are_one_with_all_samples(self):
        together = run(decode(), 1.2, samples=20)
        apart = [
            PartRun(together.part, each, {"cpu": each}) for each in (together.samples_s[:7], together.samples_s[7:])
        ]
        assert_same(steps(PLAIN.corrected_by(apart, MODEL), 1.0), steps(PLAIN.corrected_by([together], MODEL), 1.0))

    def test_hundreds_of_runs_close_together_are_no_trouble(self):
        rng = np.random.default_rng(5)
        runs = [
            run(decode(int(threads), int(batch), context=int(context)), math.exp(rng.normal(0.1, 0.02)))
            for threads, batch, context in zip(*(rng.integers(1, most, 300) for most in (9, 17, 2000)), strict=True)
        ]
        decoding, prefilling = log_factors(PLAIN.corrected_by([*runs, *runs], MODEL))
        assert np.isfinite(prefilling).all()
        assert np.abs(decoding - 0.1).max() < 0.05

    def test_the_error_of_leaving_one_out_is_that_of_a_correction_by_the_others(self):
        rng = np.random.default_rng(3)
        parts = [decode(1, 1), decode(4, 1), decode(4, 8), decode(8, 16), prefill(2, 16), prefill(8, 64)]
        runs = [run(part, math.exp(rng.normal(0.1, 0.02))) for part in parts]
        of_phase = {"decode": [], "prefill": []}
        for left_out in runs:
            others = [other for other in runs if other is not left_out]
            predicted = PLAIN.corrected_by(others, MODEL).predict(MODEL, left_out.part)["cpu"]
            of_phase[left_out.part.phase].append(abs(predicted / left_out.median_s - 1))
        reports = PLAIN.corrected_by(runs, MODEL).corrections()
        assert [(report.device, report.phase, report.runs) for report in reports] == [
            ("cpu", "decode", 4),
            ("cpu", "prefill", 2),
        ]
        for report in reports:
            assert report.median_error_after == pytest.approx(np.median(of_phase[report.phase]), rel=1e-6)

    def test_a_report_gives_the_mean_factor_and_the_error_before(self):
        runs = [run(decode(1, 1), 1.25), run(decode(8, 8), 1.25)]
        (report,) = PLAIN.corrected_by(runs, MODEL).corrections()
        assert report.factor == pytest.approx(1.25)
        assert report.median_error_before == pytest.approx(0.2)
        assert report.median_error_after < 0.06

    def test_one_run_alone_has_no_others_to_be_predicted_from(self):
        (report,) = PLAIN.corrected_by([run(decode(), 1.25), run(decode(), 1.25)], MODEL).corrections()
        assert report.runs == 1
        assert report.median_error_after is None


GPUS = CostModel(with_gpu(CAMPAIGN, GPU, GPU.outcomes(MODEL), "cuda:1"), {"cpu": "sum", "cuda:0": "waves"})
SPLIT = (("cpu", 2), ("cuda:0", 1), ("cuda:1", 1))


class TestSeveralDevices:
    def factors(self, cost_model, part):
        plain = cost_model.predict(MODEL, part, corrected=False)
        return {device: time_s / plain[device] for device, time_s in cost_model.predict(MODEL, part).items()}

    def test_each_device_is_corrected_by_its_own_seconds(self):
        part = decode(layers=(("cpu", 2), ("cuda:0", 2)), head="cuda:0")
        found = GPUS.corrected_by([run(part, cost_model=GPUS, cpu=1.0, cuda0=1.3)], MODEL)
        factors = self.factors(found, part)
        assert factors["cpu"] == pytest.approx(1.0, abs=1e-3)
        assert factors["cuda:0"] == pytest.approx(1.3, rel=0.02)
        assert {report.device: report.factor for report in found.corrections()} == pytest.approx(
            {"cpu": 1, "cuda:0": 1.3}
        )

    def test_a_gpus_crossings_are_corrected_with_it_on_any_number_of_cpu_threads(self):
        part = decode(layers=(("cuda:0", 4),), head="cuda:0")
        found = GPUS.corrected_by([run(part, 1.3, cost_model=GPUS)], MODEL)
        corrected, plain = (tables(each.steps(MODEL, WORKLOAD, THREADS, BATCHES, CHUNKS)) for each in (found, GPUS))
        for name in ("decode_crossing_s", "prefill_crossing_s", "prefill_token_s"):
            assert (corrected[name][1] > plain[name][1]).all()
            assert not corrected[name][0].any()
        assert (corrected["decode_token_s"][1:] > plain["decode_token_s"][1:]).all()
        ratio = corrected["decode_layer_s"][1, 0] / plain["decode_layer_s"][1, 0]
        assert ratio == pytest.approx(np.tile(ratio[0], (len(THREADS), 1)))
        assert ratio[0] == pytest.approx(corrected["decode_crossing_s"][1] / plain["decode_crossing_s"][1])
        assert (corrected["decode_layer_s"][0] == plain["decode_layer_s"][0]).all()

    def test_identical_gpus_are_corrected_together(self):
        found = GPUS.corrected_by([run(decode(layers=(("cuda:1", 4),), head="cuda:1"), 1.3, cost_model=GPUS)], MODEL)
        factors = self.factors(found, decode(layers=SPLIT, head="cuda:1"))
        assert factors["cuda:0"] == factors["cuda:1"] == pytest.approx(1.3, rel=0.01)
        assert factors["cpu"] == 1.0

    def test_a_part_on_identical_gpus_is_left_out_whole(self):
        """Both its shares are of one device: neither may predict the other."""
        parts = [decode(layers=SPLIT, head="cuda:1"), decode(batch=16, layers=(("cuda:0", 4),), head="cuda:0")]
        runs = [run(part, factor, cost_model=GPUS) for part, factor in zip(parts, (1.1, 1.3), strict=True)]
        report = GPUS.corrected_by(runs, MODEL).corrections()[1]
        errors = []
        for left_out, other, factor, count in ((*parts, 1.1, 2), (*parts[::-1], 1.3, 1)):
            found = self.factors(GPUS.corrected_by([each for each in runs if each.part == other], MODEL), left_out)
            errors += [abs(found["cuda:0"] / factor - 1)] * count
        assert report.runs == 2
        assert report.median_error_after == pytest.approx(np.median(errors), rel=1e-6)

    def test_a_runtime_that_does_not_tell_devices_apart_corrects_all_alike(self):
        part = decode(layers=SPLIT, head="cuda:1")
        told = run(part, 1.2, cost_model=GPUS)
        factors = self.factors(GPUS.corrected_by([replace(told, device_s={})], MODEL), part)
        assert list(factors) == ["cpu", "cuda:0", "cuda:1"]
        assert list(factors.values()) == pytest.approx([1.2] * 3, rel=0.02)

    def test_time_that_no_device_accounts_for_is_shared_out(self):
        part = decode()
        told = run(part)
        longer = replace(told, samples_s=tuple(1.1 * sample for sample in told.samples_s))
        assert self.factors(PLAIN.corrected_by([longer], MODEL), part)["cpu"] == pytest.approx(1.1, rel=0.002)

    def test_a_share_of_a_step_tells_less_than_a_whole_one(self):
        runs = [run(decode(layers=layers), cost_model=GPUS) for layers in ((("cpu", 3), ("cuda:0", 1)), (("cpu", 4),))]
        share, whole = (
            GPUS.corrected_by([each], MODEL).steps(MODEL, WORKLOAD, (2,), (4,), (32,), sigmas=1).decode_ends_s[0]
            for each in runs
        )
        assert share > whole

    @pytest.mark.parametrize("phase", ["decode", "prefill"])
    def test_a_parts_seconds_are_those_that_the_search_adds_up(self, phase):
        """At every placement: layers, head and handing over."""
        costs = GPUS.steps(MODEL, WORKLOAD, (1, 4), (1, 8), (32, 64))
        plenty = dict.fromkeys(GPUS.devices, 1 << 40)
        evaluator = build_evaluator(MODEL, WORKLOAD, costs, Room(plenty, dict.fromkeys(plenty, 0)))
        for placement in range(len(evaluator.space.layers)):
            point = Point(placement, 1, 1, 1, 1)
            part = part_of(evaluator.space.configuration(point), WORKLOAD, phase)
            value = evaluator.at(point)
            whole_s = value.tpot_s if phase == "decode" else value.ttft_s
            assert sum(GPUS.predict(MODEL, part).values()) == pytest.approx(float(whole_s), rel=1e-9)

    @pytest.mark.parametrize(
        ("part", "said"),
        [
            (decode(layers=(("cpu", 3),)), "expected a part of the 4 layers of synthetic/model, got one of 3"),
            (
                decode(layers=(("cuda:3", 4),)),
                r"expected a part on devices that were timed \(cpu, cuda:0, cuda:1\), got cuda:3",
            ),
        ],
    )
    def test_a_part_of_another_model_or_host_is_an_error(self, part, said):
        with pytest.raises(ValueError, match=said):
            GPUS.predict(MODEL, part)

    def test_runs_without_their_model_are_an_error(self):
        with pytest.raises(ValueError, match="expected the model that was run beside its 1 runs, got none"):
            CostModel(CAMPAIGN, FORMS, [run(decode())])


def test_a_recorded_hosts_predictions_follow_runs_of_a_real_models_shapes():
    """The campaign was recorded on a real host; that its engine takes 15 % longer is made up."""
    (campaign,) = recording.read(HOSTS / "xeon-2-threads-native.json").campaigns
    cost_model, model = fit(campaign)[0], analyse("bitnet-b1.58-2B-4T")
    workload = build_workload(prompt_tokens=512, output_tokens=256, context_tokens=2048, max_batch=32)
    layers = (("cpu", len(model.layers)),)
    runs = []
    for threads in (1, 2):
        for part in (
            decode(threads, 1, layers, context=workload.decode_context),
            decode(threads, 32, layers, context=workload.decode_context),
            prefill(threads, 256, layers, prompt=512),
        ):
            samples = (1.15 * cost_model.predict(model, part)["cpu"],) * 8
            runs.append(PartRun(part, samples, {"cpu": samples}))
    found = cost_model.corrected_by(runs, model)
    plain, corrected = (each.steps(model, workload, (1, 2), (1, 4, 8, 32), (128, 512)) for each in (cost_model, found))
    for name in ("decode_layer_s", "decode_ends_s", "prefill_layer_s", "prefill_ends_s"):
        assert tables(corrected)[name] / tables(plain)[name] == pytest.approx(1.15, rel=0.01)
    for report in found.corrections():
        assert report.median_error_before == pytest.approx(1 - 1 / 1.15)
        assert report.median_error_after < 0.02
