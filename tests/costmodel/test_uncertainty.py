"""How sure predictions are, and what would make them surer: on synthetic hosts that were timed in part."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.bench.plan import Task
from autotune.costmodel.device import DeviceModel
from autotune.costmodel.passes import Passes
from autotune.costmodel.roofline import product_of
from autotune.costmodel.uncertainty import Node, Piece, Timing
from autotune.records import Failure, Layer, Measurement
from tests.builders import build_model, build_workload
from tests.costmodel.synthetic import HEAD, SMALL, WIDE, SyntheticHost, attention, campaign_of, matmul, small_ops

HOST = SyntheticHost()
QUIET_S = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
TASKS = [Task(matmul(SMALL, threads, m)) for threads in (1, 2, 8) for m in (1, 16, 64)]


def timed(task, samples_s=QUIET_S, stopped="converged"):
    return Measurement(task.point, tuple(samples_s), 1, stopped)


def piece_of(outcomes, tasks=TASKS):
    """The small product, of which some tasks were tried."""
    timing = Timing(tasks, outcomes)
    nodes = timing.of_product(product_of(SMALL))
    nothing = np.zeros((1, 1))
    return Piece(nothing, nothing, nodes, timing.known(nodes))


def at(*nodes):
    return [timed(task) for task in TASKS if (task.point.threads, task.point.m) in nodes]


class TestErrors:
    """Half-widths of a product's predicted time."""

    def test_they_grow_with_the_distance_to_what_was_timed(self):
        piece = piece_of(at((1, 1), (1, 64), (8, 1), (8, 64)))
        known = piece.error("decode", 1, 1)
        assert 0 < known < 0.02
        near, half_way = piece.error("decode", 1, 2), piece.error("decode", 1, 8)
        assert known < near < half_way
        assert piece.error("decode", 3, 1) > known, "between thread counts"
        assert piece.error("decode", 3, 8) > half_way, "and between both"

    def test_a_node_in_between_makes_them_smaller(self):
        fewer, more = piece_of(at((1, 1), (1, 64))), piece_of(at((1, 1), (1, 16), (1, 64)))
        assert more.error("decode", 1, 8) < fewer.error("decode", 1, 8)

    def test_beyond_what_was_timed_they_are_larger_than_between(self):
        piece = piece_of(at((1, 1), (1, 16), (2, 1), (2, 16)))
        assert piece.error("decode", 1, 64) > piece.error("decode", 1, 4)
        assert piece.error("decode", 8, 1) > piece.error("decode", 1, 1)

    def test_thread_counts_that_were_not_timed_around_an_m_tell_nothing_of_it(self):
        piece = piece_of(at((1, 1), (1, 64), (2, 1)))
        assert piece.error("decode", 2, 16) > piece.error("decode", 1, 16)

    @pytest.mark.parametrize(
        ("samples_s", "least"),
        [(QUIET_S, 0.009), ((1.0, 1.1, 1.2, 1.3, 1.4, 1.5), 0.1), ((1.0,), 0.09)],
        ids=["quiet", "noisy", "too few to tell"],
    )
    def test_what_was_timed_is_as_sure_as_its_samples(self, samples_s, least):
        piece = piece_of([timed(TASKS[0], samples_s)])
        assert least < piece.error("decode", 1, 1) < 2 * least + 0.02

    def test_the_fastest_kernels_samples_count(self):
        slow, fast = TASKS[0], Task(replace(TASKS[0].point, kernel="native"))
        found = piece_of([timed(slow, (9.0,)), timed(fast)], [slow, fast])
        assert found.error("decode", 1, 1) < 0.02

    def test_of_what_was_not_timed_at_all_there_is_no_error(self):
        """It is no part of a prediction either."""
        assert piece_of([]).error("decode", 1, 1) == 0


class TestHelp:
    """What would make a prediction surer."""

    def test_it_is_the_node_itself_where_that_can_be_timed(self):
        piece = piece_of(at((1, 1), (1, 64)))
        assert piece.helpful("decode", 1, 16) == [Node(1, 16)]
        assert piece.least_error("decode", 1, 16) < 0.02 < piece.error("decode", 1, 16)

    def test_else_it_is_what_can_be_timed_around_it(self):
        piece = piece_of(at((1, 1), (8, 1)))
        assert piece.helpful("decode", 4, 32) == [Node(2, 16), Node(2, 64), Node(8, 16), Node(8, 64)]
        assert piece.least_error("decode", 4, 32) > 0.02, "which never makes it as sure as if it were timed itself"

    def test_nothing_helps_where_all_was_tried(self):
        tried = [*at((1, 1)), Failure(matmul(SMALL, 1, 16), "crashed", "died")]
        assert piece_of(tried).helpful("decode", 1, 1) == []
        assert Node(1, 16) not in piece_of(tried).helpful("decode", 1, 16)

    def test_what_was_sampled_just_enough_can_be_sampled_further(self):
        piece = piece_of([timed(TASKS[0], stopped="enough")])
        assert piece.helpful("decode", 1, 1) == [Node(1, 1)]
        assert piece.timed == {Node(1, 1)}

    def test_a_rival_that_was_spared_is_not_waited_for(self):
        rival = Task(replace(TASKS[0].point, kernel="native"))
        assert piece_of([timed(rival)], [TASKS[0], rival]).helpful("decode", 1, 1) == []


def pieces_of(outcomes, tasks, workload, threads=(1, 2)):
    """All pieces of a small model's steps, the layers' product first, then small operations, attention, and head."""
    model = build_model(layers=(Layer((SMALL, SMALL)),) * 3, head=HEAD)
    campaign = campaign_of([*HOST.ceilings(), *outcomes])
    passes = Passes(workload, [1, 4], [32, 64])
    held = DeviceModel(campaign, "sum")
    return (
        held,
        model,
        passes,
        Timing(tasks, campaign.outcomes).pieces(held, model, workload, passes, np.array(threads)),
    )


class TestPieces:
    """What steps of a whole model are made of."""

    OUTCOMES = (*HOST.products(), *HOST.layer_rest())
    TASKS = tuple(Task(found.point) for found in OUTCOMES)
    WORKLOAD = build_workload(prompt_tokens=64, output_tokens=128, max_batch=4)

    def test_their_times_add_up_to_a_steps(self):
        held, model, passes, pieces = pieces_of(self.OUTCOMES, self.TASKS, self.WORKLOAD)
        steps = held.steps(model, [0], passes, np.array([1, 2]))
        for phase, layer_s, ends_s in (
            ("decode", steps.decode_layer_s, steps.decode_ends_s),
            ("prefill", steps.prefill_layer_s, steps.prefill_ends_s),
        ):
            layers = sum(piece.times_s[phase] for piece in pieces if not piece.of_head)
            assert layers == pytest.approx(3 * layer_s[0])
            assert sum(piece.times_s[phase] for piece in pieces if piece.of_head) == pytest.approx(ends_s)

    def test_one_tokens_small_operations_are_as_sure_on_any_number_of_threads(self):
        _, _, _, pieces = pieces_of(self.OUTCOMES, self.TASKS, self.WORKLOAD)
        small = pieces[1]
        assert small.error("decode", 2, 1) == small.error("decode", 1, 1)

    def test_a_batchs_attention_is_as_sure_as_that_of_one_sequence(self):
        """They are taken in turn."""
        _, _, _, pieces = pieces_of(self.OUTCOMES, self.TASKS, self.WORKLOAD)
        decode_attention = pieces[2]
        assert decode_attention.error("decode", 1, 4) == decode_attention.error("decode", 1, 1) > 0

    def test_a_prompt_passes_the_head_with_one_token(self):
        _, _, _, pieces = pieces_of(self.OUTCOMES, self.TASKS, self.WORKLOAD)
        assert pieces[-1].error("prefill", 1, 64) == pieces[-1].error("decode", 1, 1)

    def test_of_attention_only_the_contexts_around_that_of_a_step_are_needed(self):
        tasks = [Task(attention(1, 1, context)) for context in (0, 100, 200, 400)]
        nodes = Timing(tasks).of_decode_attention(build_workload(prompt_tokens=64, output_tokens=128))
        assert nodes == {Node(1, 1): (1, 2)}, "it is over 128 tokens"

    def test_of_a_chunks_attention_only_the_contexts_that_its_prompt_comes_to_are_needed(self):
        tasks = [Task(attention(1, m, context)) for m in (16, 64) for context in (0, 32, 1024)]
        nodes = Timing(tasks).of_prefill_attention(build_workload(prompt_tokens=64))
        assert nodes == {Node(1, 16): (0, 1, 2), Node(1, 64): (3,)}

    def test_a_node_is_timed_when_all_of_its_points_are(self):
        tasks = [Task(attention(1, 16, context)) for context in (0, 1024)]
        timing = Timing(tasks, [timed(tasks[0])])
        known = timing.known(timing.of_prefill_attention(build_workload(prompt_tokens=64)))
        assert not known.widths
        assert known.open == {Node(1, 16)}

    def test_small_operations_of_many_tokens_are_shared_among_threads(self):
        tasks = [Task(replace(small_ops(m), threads=threads)) for threads, m in ((1, 1), (1, 16), (2, 16))]
        nodes = Timing(tasks).of_small_ops([1, 2])
        assert nodes == {Node(1, 1): (0,), Node(2, 1): (0,), Node(1, 16): (1,), Node(2, 16): (2,)}

    def test_other_products_are_not_mixed_up(self):
        tasks = [Task(matmul(site, 1, 1)) for site in (SMALL, WIDE, HEAD)]
        assert Timing(tasks).of_product(product_of(WIDE)) == {Node(1, 1): (1,)}
