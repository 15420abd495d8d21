"""Steps as sums of their parts, checked by hand against the laws of a synthetic host."""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.model import CostModel
from autotune.errors import BenchmarkError
from autotune.records import Failure, Layer
from tests.builders import build_workload
from tests.costmodel.synthetic import HEAD, LARGE, LONG, SMALL, WIDE, SyntheticHost, campaign_of

HOST = SyntheticHost(utilisation=0.5)
COST_MODEL = CostModel(campaign_of(HOST.outcomes()), {"cpu": "sum"})
WORKLOAD = build_workload(prompt_tokens=100, output_tokens=56)


def layer_by_hand(sites, m, threads):
    """Products and small operations of a layer, by the host's own laws."""
    return sum(HOST.product_s(site, m, threads) for site in sites) + HOST.small_ops_s(m)


USUAL, LARGER = (SMALL, WIDE, WIDE, LONG), (SMALL, LARGE, LONG)


def test_a_decode_step_is_its_layers_each_sequences_attention_and_the_head(mixed_model):
    """Half of the output is in the cache: 128 tokens."""
    costs = COST_MODEL.steps(mixed_model, WORKLOAD, (1, 3), (1, 4, 16), (32,))
    assert costs.layer_kinds.tolist() == [0, 1, 0]
    for t, threads in enumerate((1, 3)):
        for b, batch in enumerate((1, 4, 16)):
            attended = batch * HOST.attention_s(1, 128, threads)
            for kind, sites in enumerate((USUAL, LARGER)):
                by_hand = layer_by_hand(sites, batch, threads) + attended
                assert costs.decode_layer_s[0, kind, t, b] == pytest.approx(by_hand, rel=1e-5)
            assert costs.decode_ends_s[0, t, b] == pytest.approx(HOST.product_s(HEAD, batch, threads), rel=1e-5)


def test_a_prefill_is_its_whole_chunks_and_the_remainder(mixed_model):
    """100 tokens in chunks of 32 are three of them, at contexts 0, 32 and 64, and 4 tokens at 96."""
    costs = COST_MODEL.steps(mixed_model, WORKLOAD, (2,), (1,), (32,))
    attended = sum(HOST.attention_s(32, context, 2) for context in (0, 32, 64)) + HOST.attention_s(4, 96, 2)
    for kind, sites in enumerate((USUAL, LARGER)):
        by_hand = 3 * layer_by_hand(sites, 32, 2) + layer_by_hand(sites, 4, 2) + attended
        assert costs.prefill_layer_s[0, kind, 0, 0] == pytest.approx(by_hand, rel=1e-5)


def test_a_prompt_that_chunks_divide_has_no_remainder(mixed_model):
    costs = COST_MODEL.steps(mixed_model, build_workload(prompt_tokens=128), (2,), (1,), (64,))
    attended = HOST.attention_s(64, 0, 2) + HOST.attention_s(64, 64, 2)
    by_hand = 2 * layer_by_hand(USUAL, 64, 2) + attended
    assert costs.prefill_layer_s[0, 0, 0, 0] == pytest.approx(by_hand, rel=1e-5)


def test_a_prompt_shorter_than_the_chunk_goes_through_at_once(mixed_model):
    costs = COST_MODEL.steps(mixed_model, build_workload(prompt_tokens=20), (2,), (1,), (32, 64))
    by_hand = layer_by_hand(USUAL, 20, 2) + HOST.attention_s(20, 0, 2)
    assert costs.prefill_layer_s[0, 0, 0] == pytest.approx([by_hand, by_hand], rel=1e-5)


def test_only_the_last_prompt_token_goes_through_the_head(mixed_model):
    costs = COST_MODEL.steps(mixed_model, WORKLOAD, (1, 2), (4,), (32, 64))
    for t, threads in enumerate((1, 2)):
        assert costs.prefill_ends_s[0, t] == pytest.approx([HOST.product_s(HEAD, 1, threads)] * 2, rel=1e-5)


def test_a_tied_head_is_multiplied_with_like_any_other(mixed_model):
    tied, untied = (
        COST_MODEL.steps(replace(mixed_model, tied=tied), WORKLOAD, (1,), (1,), (32,)) for tied in (True, False)
    )
    assert (tied.decode_ends_s == untied.decode_ends_s).all()
    assert (tied.decode_ends_s > 0).all()


def test_the_table_has_the_axes_it_was_asked_for_and_the_cpu_alone(mixed_model):
    costs = COST_MODEL.steps(mixed_model, WORKLOAD, range(1, 6), (1, 2, 4, 8), (32, 64, 100))
    assert costs.devices == ("cpu",)
    assert [axis.tolist() for axis in (costs.threads, costs.batches, costs.chunks)] == [
        [1, 2, 3, 4, 5],
        [1, 2, 4, 8],
        [32, 64, 100],
    ]
    assert costs.decode_layer_s.shape == (1, 2, 5, 4)
    assert costs.decode_ends_s.shape == (1, 5, 4)
    assert costs.prefill_layer_s.shape == (1, 2, 5, 3)
    assert costs.prefill_ends_s.shape == (1, 5, 3)
    assert not costs.decode_crossing_s.any()
    assert costs.decode_crossing_s.shape == (1, 4)
    assert not costs.prefill_crossing_s.any()
    assert costs.prefill_crossing_s.shape == (1, 3)


def test_more_sequences_longer_prompts_and_shorter_chunks_cost_more(mixed_model):
    threads, batches, chunks = (1, 2, 4, 6, 8), (1, 2, 3, 8, 16, 40, 64), (8, 16, 32, 64)
    short, long = (
        COST_MODEL.steps(mixed_model, build_workload(prompt_tokens=prompt), threads, batches, chunks)
        for prompt in (128, 256)
    )
    for costs in (short, long):
        assert (np.diff(costs.decode_layer_s, axis=-1) > 0).all()
        assert (np.diff(costs.decode_ends_s, axis=-1) > 0).all()
    products_alone = SyntheticHost(utilisation=0.5)
    unattended = CostModel(campaign_of([*products_alone.ceilings(), *products_alone.products()]), {"cpu": "sum"})
    costs = unattended.steps(mixed_model, build_workload(prompt_tokens=128), threads, batches, chunks)
    assert (np.diff(costs.prefill_layer_s, axis=-1) < 0).all()
    assert (long.decode_layer_s > short.decode_layer_s).all()
    assert (long.prefill_layer_s > 2 * short.prefill_layer_s).all()


def test_threads_help_until_contention_outweighs_them(mixed_model):
    """With sigma = 0.05 and kappa = 0.01 the law's best is the root of (1 - sigma) / kappa: 9.7 threads."""
    host = SyntheticHost(sigma=0.05, kappa=0.01)
    outcomes = [*host.ceilings(threads=(1, 2, 4, 8, 16)), *host.products(threads=(1, 2, 4, 8, 16))]
    cost_model = CostModel(campaign_of(outcomes), {"cpu": "sum"})
    costs = cost_model.steps(mixed_model, WORKLOAD, range(1, 17), (1,), (32,))
    assert costs.threads[costs.decode_layer_s[0, 0, :, 0].argmin()] == 10


def test_a_site_that_failed_everywhere_is_predicted_from_the_others(mixed_model):
    outcomes = [
        Failure(found.point, "crashed", "the worker died") if found.point.n_out == LARGE.n_out else found
        for found in HOST.outcomes()
    ]
    costs = CostModel(campaign_of(outcomes), {"cpu": "sum"}).steps(mixed_model, WORKLOAD, (2,), (4,), (32,))
    by_hand = layer_by_hand(LARGER, 4, 2) + 4 * HOST.attention_s(1, 128, 2)
    assert costs.decode_layer_s[0, 1, 0, 0] == pytest.approx(by_hand, rel=1e-4)


def test_a_head_of_a_format_never_timed_is_an_error(mixed_model):
    outcomes = [found for found in HOST.outcomes() if found.point.format != "F16" or found.point.op != "matmul"]
    with pytest.raises(BenchmarkError, match="F16 1000 x 256"):
        CostModel(campaign_of(outcomes), {"cpu": "sum"}).steps(mixed_model, WORKLOAD, (2,), (4,), (32,))


def test_without_attention_and_small_operations_a_layer_is_its_products(mixed_model):
    cost_model = CostModel(campaign_of([*HOST.ceilings(), *HOST.products()]), {"cpu": "sum"})
    costs = cost_model.steps(mixed_model, WORKLOAD, (2,), (4,), (32,))
    by_hand = sum(HOST.product_s(site, 4, 2) for site in USUAL)
    assert costs.decode_layer_s[0, 0, 0, 0] == pytest.approx(by_hand, rel=1e-5)


def test_equal_layers_are_one_kind_whatever_their_number(mixed_model):
    deep = replace(mixed_model, layers=(Layer(USUAL),) * 120)
    costs = COST_MODEL.steps(deep, WORKLOAD, (1,), (1,), (32,))
    assert costs.decode_layer_s.shape == (1, 1, 1, 1)
    assert costs.layer_kinds.tolist() == [0] * 120
