"""Steps, limits and caveats of a synthetic host with a CPU and GPUs, checked by hand against their laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.bottleneck import handovers_s
from autotune.costmodel.model import CostModel
from autotune.errors import BenchmarkError
from autotune.model.fusion import fused
from autotune.model.memory import Room
from autotune.records import Configuration, Failure, GpuRun, Layer
from autotune.search.evaluate import build_evaluator
from autotune.search.space import Point
from tests.builders import build_model, build_workload
from tests.costmodel.synthetic import SyntheticHost, campaign_of, matmul, measured
from tests.costmodel.synthetic_gpu import SyntheticGpu, gpu_sites, with_gpu

HOST, GPU = SyntheticHost(utilisation=0.5), SyntheticGpu()
SLOW = SyntheticGpu("cuda:2", bytes_per_s=1e10, operations_per_s=1e12, launch_s=5e-5)
PLAIN = build_model()
(USUAL, _) = PLAIN.layers
OTHER = Layer(USUAL.sites[3:])
MODEL = replace(PLAIN, layers=(USUAL, OTHER, USUAL))
WORKLOAD = build_workload(prompt_tokens=100, output_tokens=56, max_batch=16)
FORMS = {"cpu": "sum", "cuda:0": "waves", "cuda:2": "waves"}
HIDDEN = MODEL.hidden_size


def cpu_outcomes():
    sites = {(site.format, site.n_out, site.k_in): site for layer in MODEL.layers for site in layer.sites}
    return [*HOST.ceilings(), *HOST.products([*sites.values(), MODEL.head]), *HOST.layer_rest()]


def three_gpus():
    """Two identical ones and a slower one."""
    campaign = with_gpu(campaign_of(cpu_outcomes()), GPU, GPU.outcomes(MODEL), "cuda:1")
    return with_gpu(campaign, SLOW, SLOW.outcomes(MODEL))


COST_MODEL = CostModel(three_gpus(), FORMS)
BATCHES, CHUNKS = (1, 4, 16), (32, 64)


@pytest.fixture(scope="module")
def costs():
    return COST_MODEL.steps(MODEL, WORKLOAD, (1, 2, 4), BATCHES, CHUNKS)


def configuration(layers, head, batch=4, chunk=32):
    return Configuration(layers, head, decode_threads=2, prefill_threads=2, batch_size=batch, prefill_chunk=chunk)


def layer_by_hand(gpu, layer, m):
    """Products, fused, and small operations of a layer."""
    return sum(gpu.product_s(site, m) for site in fused(layer)) + gpu.small_ops_s(m)


class TestSteps:
    def test_the_cpu_comes_first_and_all_tables_have_all_devices(self, costs):
        assert costs.devices == COST_MODEL.devices == ("cpu", "cuda:0", "cuda:1", "cuda:2")
        assert costs.decode_layer_s.shape == (4, 2, 3, 3)
        assert costs.prefill_layer_s.shape == (4, 2, 3, 2)
        assert (costs.decode_ends_s.shape, costs.prefill_ends_s.shape) == ((4, 3, 3), (4, 3, 2))
        assert (costs.decode_crossing_s.shape, costs.prefill_crossing_s.shape) == ((4, 3), (4, 2))
        assert (costs.decode_token_s.shape, costs.prefill_token_s.shape) == ((4,), (4, 2))

    def test_the_cpus_rows_are_those_of_a_host_without_gpus(self, costs):
        alone = CostModel(campaign_of(cpu_outcomes()), {"cpu": "sum"}).steps(
            MODEL, WORKLOAD, (1, 2, 4), BATCHES, CHUNKS
        )
        assert (alone.decode_layer_s == costs.decode_layer_s[:1]).all()
        assert (alone.prefill_layer_s == costs.prefill_layer_s[:1]).all()
        assert not costs.decode_crossing_s[0].any()
        assert not costs.prefill_token_s[0].any()

    @pytest.mark.parametrize(("row", "gpu"), [(1, GPU), (3, SLOW)])
    def test_a_decode_step_attends_to_all_sequences_at_once(self, costs, row, gpu):
        """Half of the output is in the cache: 128 tokens."""
        for column, batch in enumerate(BATCHES):
            attended = gpu.attention_s(1, 128, batch)
            for kind, layer in enumerate((USUAL, OTHER)):
                by_hand = layer_by_hand(gpu, layer, batch) + attended
                assert costs.decode_layer_s[row, kind, 0, column] == pytest.approx(by_hand, rel=1e-6)
            head = gpu.product_s(MODEL.head, batch)
            assert costs.decode_ends_s[row, 0, column] == pytest.approx(head, rel=1e-6)

    def test_a_prefill_goes_through_in_chunks(self, costs):
        """100 tokens in chunks of 32: three of them and 4 tokens; all sizes were timed but attention's."""
        attention = COST_MODEL.models["cuda:0"].attention
        attended = sum(
            attention.time_s(size, np.array([context], float), np.ones(1, np.int64))[0]
            for size, context in ((32, 0), (32, 32), (32, 64), (4, 96))
        )
        by_hand = 3 * layer_by_hand(GPU, USUAL, 32) + layer_by_hand(GPU, USUAL, 4) + attended
        assert costs.prefill_layer_s[1, 0, 0, 0] == pytest.approx(by_hand, rel=1e-6)
        assert costs.prefill_ends_s[1, 0] == pytest.approx([GPU.product_s(MODEL.head, 1)] * 2, rel=1e-6)

    def test_identical_gpus_take_the_same_time_on_any_number_of_cpu_threads(self, costs):
        assert COST_MODEL.models["cuda:1"] is COST_MODEL.models["cuda:0"]
        for table in (costs.decode_layer_s, costs.prefill_layer_s):
            assert (table[1] == table[2]).all()
            assert (table[1:] == table[1:, :, :1]).all()

    def test_crossings_are_half_handovers(self, costs):
        assert costs.decode_crossing_s[1] == pytest.approx(
            [GPU.handover_s(batch * HIDDEN * 4) / 2 for batch in BATCHES], rel=1e-6
        )
        assert costs.decode_token_s[1] == costs.decode_crossing_s[1, 0]
        assert (costs.prefill_token_s[1:] < costs.prefill_crossing_s[1:]).all()

    def test_gpus_come_in_cudas_order_whichever_of_them_were_timed(self):
        """Of two identical ones that with more free memory was timed, and it is not the first of the host's."""
        timed = dataclasses.replace(GPU, device="cuda:10")
        campaign = with_gpu(campaign_of(cpu_outcomes()), timed, timed.outcomes(MODEL), "cuda:0")
        campaign = with_gpu(campaign, SLOW, SLOW.outcomes(MODEL))
        found = CostModel(campaign, {**FORMS, "cuda:10": "waves"})
        assert found.devices == ("cpu", "cuda:0", "cuda:2", "cuda:10")
        assert found.models["cuda:0"].device == "cuda:10"

    def test_a_gpu_that_failed_as_a_whole_is_none_of_the_devices(self):
        failed = replace(three_gpus(), gpus=(GpuRun(("cuda:0",), "CUDA driver version is insufficient"),))
        assert CostModel(failed, {"cpu": "sum"}).devices == ("cpu",)

    def test_a_gpu_whose_ceilings_are_missing_is_an_error_that_names_it(self):
        gpu_products = with_gpu(campaign_of(cpu_outcomes()), GPU, GPU.products(gpu_sites(MODEL)))
        with pytest.raises(BenchmarkError, match=r"^the read bandwidth of cuda:0 was not measured"):
            CostModel(gpu_products, FORMS)


class TestBoundBy:
    def said(self, layers, head, cost_model=COST_MODEL, **sizes):
        return cost_model.bound_by(MODEL, WORKLOAD, configuration(layers, head, **sizes))

    def test_a_cpu_alone_is_told_of_as_on_a_host_without_gpus(self):
        alone = CostModel(campaign_of(cpu_outcomes()), {"cpu": "sum"})
        assert self.said({"cpu": 3}, "cpu") == self.said({"cpu": 3}, "cpu", alone)

    def test_the_device_that_takes_longest_is_named_and_each_with_its_ceilings(self):
        said = self.said({"cpu": 1, "cuda:2": 2}, "cuda:2")
        assert said.startswith("what the kernels do besides, short of both memory and arithmetic, on cuda:2: a decode")
        assert "; cpu uses " in said
        assert "of the measured read bandwidth (" in said
        assert "; cuda:2 uses " in said
        assert "of the measured copy bandwidth (10.0 GB/s)" in said
        assert "handing over" in said

    def test_identical_gpus_with_as_many_layers_are_told_of_once(self):
        campaign = with_gpu(campaign_of(cpu_outcomes()), GPU, GPU.outcomes(MODEL), "cuda:1")
        alike = CostModel(campaign, FORMS).bound_by(
            replace(MODEL, layers=(USUAL,) * 4), WORKLOAD, configuration({"cuda:0": 2, "cuda:1": 2}, "cpu")
        )
        assert "; cuda:0 and cuda:1 each use " in alike
        assert alike.count("% of the measured copy bandwidth") == 1

    def test_where_the_handovers_take_longest_they_are_the_limit(self):
        said = self.said({"cuda:0": 3}, "cpu", CostModel(self.slow_bus(), FORMS))
        assert said.startswith("handing activations over between devices: a decode step's time goes to handing over ")

    def slow_bus(self):
        """Handovers that take 1 s each."""
        campaign = three_gpus()
        outcomes = [
            replace(found, samples_s=(1.0,)) if found.point.op == "handover" else found for found in campaign.outcomes
        ]
        return replace(campaign, outcomes=tuple(outcomes))

    def test_a_large_head_on_a_gpu_is_bound_by_memory_there(self):
        head = replace(MODEL.head, n_out=4_000_000)
        model = replace(MODEL, head=head, embedding=replace(head, name="embedding"))
        outcomes = [*GPU.outcomes(model), *GPU.products([head])]
        campaign = with_gpu(campaign_of(cpu_outcomes()), GPU, outcomes)
        said = CostModel(campaign, FORMS).bound_by(model, WORKLOAD, configuration({"cuda:0": 3}, "cuda:0", 1))
        assert said.startswith("memory bandwidth, on cuda:0: ")
        assert "time there goes to the head 9" in said

    def test_shares_of_a_head_alone_name_no_layers(self):
        said = self.said({"cuda:0": 3}, "cpu")
        assert "time there goes to the head 100%" in said

    @pytest.mark.parametrize(
        ("layers", "head"),
        [
            ({"cpu": 1, "cuda:0": 2}, "cuda:0"),
            ({"cpu": 1, "cuda:0": 2}, "cpu"),
            ({"cuda:0": 1, "cuda:1": 2}, "cuda:1"),
            ({"cuda:0": 2, "cuda:2": 1}, "cpu"),
            ({"cuda:1": 3}, "cuda:1"),
            ({"cpu": 1, "cuda:1": 1, "cuda:2": 1}, "cuda:2"),
        ],
    )
    def test_what_is_handed_over_is_what_the_search_adds_to_layers_and_head(self, costs, layers, head):
        room = Room(dict.fromkeys(costs.devices, 10**12), dict.fromkeys(costs.devices, 0))
        evaluator = build_evaluator(MODEL, WORKLOAD, costs, room=room)
        counts = [layers.get(device, 0) for device in costs.devices]
        (placement,) = np.flatnonzero(
            (evaluator.space.layers == counts).all(axis=1) & (evaluator.space.heads == costs.devices.index(head))
        )
        tpot_s = evaluator.at(Point(placement, 1, 1, 1, 0)).tpot_s
        of_layers = np.repeat(np.arange(len(counts)), counts)
        work_s = sum(
            costs.decode_layer_s[device, kind, 1, 1] for device, kind in zip(of_layers, (0, 1, 0), strict=True)
        )
        work_s += costs.decode_ends_s[costs.devices.index(head), 1, 1]
        found = handovers_s(COST_MODEL.models, MODEL, WORKLOAD, configuration(layers, head))
        assert found == pytest.approx(tpot_s - work_s)
        assert found > 0


class TestCaveats:
    def caveats(self, campaign, layers, head, **sizes):
        return CostModel(campaign, FORMS).caveats(MODEL, WORKLOAD, configuration(layers, head, **sizes))

    def test_inside_the_measured_range_there_are_none(self):
        assert self.caveats(three_gpus(), {"cpu": 1, "cuda:0": 1, "cuda:2": 1}, "cuda:2", batch=16, chunk=64) == ()

    def test_other_devices_than_the_configurations_dont_matter(self):
        assert self.caveats(three_gpus(), {"cuda:0": 3}, "cuda:0", batch=64) == ()

    def test_what_concerns_a_gpu_names_it(self):
        """A batch of 128 is more sequences than attention was timed with; products were timed to 512."""
        found = self.caveats(three_gpus(), {"cuda:0": 1, "cuda:1": 2}, "cuda:1", batch=128)
        assert found == (
            "on cuda:0 and cuda:1: decode: attention of 128 sequences is extrapolated, the most timed at once is 64",
        )

    def test_what_concerns_the_cpu_says_nothing_of_it(self):
        found = self.caveats(three_gpus(), {"cuda:0": 3}, "cpu", batch=128)
        assert "decode: products at m = 128 are extrapolated, the largest timed m is 64" in found

    def test_cpu_threads_dont_concern_a_gpu(self):
        threads = replace(configuration({"cuda:0": 3}, "cuda:0"), decode_threads=99, prefill_threads=99)
        assert CostModel(three_gpus(), FORMS).caveats(MODEL, WORKLOAD, threads) == ()

    def test_what_was_not_timed_at_all(self):
        gpu = [
            Failure(found.point, "crashed", "the worker died") if found.point.n_out == 1536 else found
            for found in [*GPU.ceilings(), *GPU.products(gpu_sites(MODEL))]
        ]
        found = self.caveats(with_gpu(campaign_of(cpu_outcomes()), GPU, gpu), {"cuda:0": 3}, "cuda:0")
        assert found == (
            "on cuda:0: I2_S 1536 x 256 was not timed: its time follows from the other I2_S products",
            "on cuda:0: attention was not timed: its time is left out",
            "on cuda:0: norms, gate and quantisation were not timed: their time is left out",
            "on cuda:0: handing activations over was not timed: its time is left out",
        )


def test_of_kernels_the_fastest_counts_as_graphs_launch_it():
    """Also where noise made a call by itself faster than one in a graph."""
    (site, *_) = gpu_sites(MODEL)
    point = replace(matmul(site, 1, 1, "triton"), device="cuda:0", launch="graph")
    others = [measured(replace(point, kernel="torch"), 1.0), measured(replace(point, launch="eager"), 1e-9)]
    outcomes = [*others, *GPU.outcomes(MODEL), *others]
    found = CostModel(with_gpu(campaign_of(cpu_outcomes()), GPU, outcomes), FORMS)
    assert found.steps(MODEL, WORKLOAD, (1,), (1,), (32,)).decode_layer_s[1, 0, 0, 0] == pytest.approx(
        layer_by_hand(GPU, USUAL, 1) + GPU.attention_s(1, 128, 1), rel=1e-6
    )
