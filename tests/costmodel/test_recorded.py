"""Recorded, not synthetic: campaigns measured on a real host of 2 threads for bitnet-b1.58-2B-4T (tests/hosts)."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.heldout import fit
from autotune.costmodel.kernels import fastest_kernels
from autotune.costmodel.model import CostModel
from autotune.costmodel.roofline import Product
from autotune.model.analyse import analyse
from autotune.records import Campaign, Configuration, Model
from autotune.store import recording
from tests.builders import build_workload
from tests.costmodel.conftest import HOSTS

WORKLOAD = build_workload(prompt_tokens=512, output_tokens=256, context_tokens=2048, max_batch=32)


@pytest.fixture(scope="module")
def cost_model(recorded: Campaign) -> CostModel:
    return fit(recorded)[0]


@pytest.fixture(scope="module")
def model() -> Model:
    return analyse("bitnet-b1.58-2B-4T")


def test_held_out_errors_are_known_for_all_three_ways(recorded):
    _, (report,) = fit(recorded)
    assert [error.left_out for error in report.held_out] == ["interior m", "site", "thread count"]
    for error in report.held_out:
        assert error.predictions > 50
        assert 0 < error.median <= error.p90 <= error.worst
        assert error.median < 0.3


def test_measured_products_attention_and_small_operations_come_back_as_their_medians(recorded, cost_model):
    """Of several kernels at a point, the fastest one's."""
    fastest = {}
    for found in sorted(recorded.measurements(), key=lambda found: -found.median_s):
        fastest[replace(found.point, kernel="")] = found
    cpu, predicted, medians = cost_model.models["cpu"], [], []
    for found in fastest.values():
        point, threads = found.point, np.array([found.point.threads])
        tokens = np.array([point.m], np.float64)
        if point.op == "matmul":
            product = Product(point.format, point.n_out, point.k_in)
            predicted.append(cpu.products.time_s(product, tokens, threads)[0, 0])
        elif point.op == "attention":
            contexts = np.array([point.context], np.float64)
            predicted.append(cpu.attention.time_s(point.m, contexts, threads)[0])
        elif point.op == "layer_ops":
            predicted.append(cpu.small_ops.time_s(tokens, threads)[0, 0])
        else:
            continue
        medians.append(found.median_s)
    assert len(medians) > 100
    assert predicted == pytest.approx(medians, rel=1e-9)


def test_every_predicted_step_is_positive_and_finite(cost_model, model):
    costs = cost_model.steps(model, WORKLOAD, range(1, 9), (1, 2, 3, 4, 8, 16, 32), (32, 48, 64, 128, 256, 512))
    for table in (costs.decode_layer_s, costs.decode_ends_s, costs.prefill_layer_s, costs.prefill_ends_s):
        assert np.isfinite(table).all()
        assert (table > 0).all()


def test_a_timed_range_of_the_search_needs_no_caveat(cost_model, model):
    for threads in (1, 2):
        configuration = Configuration(
            device_layers={"cpu": len(model.layers)},
            head_device="cpu",
            decode_threads=threads,
            prefill_threads=threads,
            batch_size=32,
            prefill_chunk=512,
        )
        assert cost_model.caveats(model, WORKLOAD, configuration) == ()
        assert "time goes to" in cost_model.bound_by(model, WORKLOAD, configuration)


def test_each_point_of_the_fast_kernels_is_of_the_one_that_was_faster(model):
    """Vector instructions for few tokens, tiles for many; never the reference."""
    (campaign,) = recording.read(HOSTS / "xeon-2-threads-native.json").campaigns
    configuration = Configuration({"cpu": 30}, "cpu", 2, 2, batch_size=8, prefill_chunk=512)
    for site in fastest_kernels(campaign, model, configuration):
        assert set(site.decode.values()) == {"native"}
        assert {site.prefill[m] for m in ("64", "128", "256", "512") if site.prefill} <= {"amx"}
