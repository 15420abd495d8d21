"""Attention and the small operations."""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.layers import AttentionTimes, SmallOpsTimes
from autotune.records import Failure
from tests.costmodel.synthetic import SyntheticHost, attention, campaign_of, measured, small_ops
from tests.costmodel.synthetic_gpu import SyntheticGpu

HOST = SyntheticHost()
TIMES = AttentionTimes(campaign_of(HOST.layer_rest()))


def attention_s(times, m, contexts, threads=(1,)):
    return times.time_s(m, np.array(contexts, np.float64), np.array(threads))


class TestAttention:
    def test_it_is_linear_in_the_context_and_beyond_the_longest(self):
        for context in (0, 17, 200, 256, 1000):
            assert attention_s(TIMES, 16, [context])[0] == pytest.approx(HOST.attention_s(16, context, 1), rel=1e-6)

    def test_contexts_are_summed(self):
        together = attention_s(TIMES, 16, [0, 16, 32], (1, 2))
        assert together == pytest.approx(sum(attention_s(TIMES, 16, [context], (1, 2)) for context in (0, 16, 32)))

    @pytest.mark.parametrize("m", [1, 3, 16, 50, 64, 128])
    def test_it_is_a_power_law_in_m(self, m):
        assert attention_s(TIMES, m, [100])[0] == pytest.approx(HOST.attention_s(m, 100, 1), rel=1e-6)

    def test_it_scales_with_threads(self):
        found = attention_s(TIMES, 16, [100], (1, 3, 8))
        assert found == pytest.approx([HOST.attention_s(16, 100, count) for count in (1, 3, 8)], rel=1e-5)

    def test_with_one_timed_m_it_is_proportional_to_m(self):
        times = AttentionTimes(campaign_of(HOST.layer_rest(tokens=(16,))))
        assert attention_s(times, 32, [256])[0] == pytest.approx(2 * HOST.attention_s(16, 256, 1))

    def test_with_one_timed_context_longer_ones_grow_with_the_tokens_attended_to(self):
        """9 tokens over a context of 95 attend to 100 on average, over 195 to 200."""
        times = AttentionTimes(campaign_of([measured(attention(1, 9, 95), 1e-3)]))
        found = [attention_s(times, 9, [context])[0] for context in (0, 95, 195)]
        assert found == pytest.approx([1e-3, 1e-3, 2e-3])

    def test_noise_never_makes_a_longer_context_cheaper_beyond_the_timed_ones(self):
        noisy = [measured(attention(1, 1, 128), 2e-3), measured(attention(1, 1, 256), 1e-3)]
        found = [attention_s(AttentionTimes(campaign_of(noisy)), 1, [context])[0] for context in (0, 256, 100_000)]
        assert found == pytest.approx([2e-3, 1e-3, 1e-3])

    def test_of_several_kernels_the_fastest_counts(self):
        point = attention(1, 1, 128)
        timed = [measured(replace(point, kernel=kernel), time_s) for kernel, time_s in (("a", 1e-3), ("b", 5e-3))]
        for outcomes in (timed, timed[::-1]):
            assert attention_s(AttentionTimes(campaign_of(outcomes)), 1, [128])[0] == pytest.approx(1e-3)

    def test_untimed_attention_counts_nothing(self):
        times = AttentionTimes(campaign_of([Failure(attention(1, 1, 128), "out_of_memory", "killed")]))
        assert attention_s(times, 1, [128], (1, 2)).tolist() == [0, 0]
        assert times.tokens == ()
        assert times.longest_context(1) == 0

    def test_the_longest_context_is_that_of_the_timed_m_a_prediction_rests_on(self):
        outcomes = [
            *HOST.layer_rest(tokens=(1,), contexts=(0, 4096)),
            *HOST.layer_rest(tokens=(16,), contexts=(0, 512)),
            *HOST.layer_rest(tokens=(64,), contexts=(0,)),
        ]
        times = AttentionTimes(campaign_of(outcomes))
        assert [times.longest_context(m) for m in (1, 8, 16, 32, 64)] == [4096, 512, 512, 0, 0]


class TestDecode:
    """A step of many sequences: a CPU takes them in turn, a GPU all at once."""

    GPU = SyntheticGpu()
    AT_ONCE = AttentionTimes(campaign_of(GPU.attention()), "cuda:0")

    def test_where_one_sequence_was_timed_more_take_proportionally_longer(self):
        found = TIMES.decode_s(np.array([1.0, 3.0, 64.0]), 100, np.array([1, 4]))
        by_hand = [[batch * HOST.attention_s(1, 100, threads) for batch in (1, 3, 64)] for threads in (1, 4)]
        assert found == pytest.approx(np.array(by_hand), rel=1e-6)

    @pytest.mark.parametrize("context", [128, 500, 2000])
    def test_where_several_were_timed_it_is_a_power_law_between_them(self, context):
        (found,) = self.AT_ONCE.decode_s(np.array([1.0, 2.0, 10.0, 64.0]), context, np.array([1]))
        assert found == pytest.approx([self.GPU.attention_s(1, context, n) for n in (1, 2, 10, 64)], rel=1e-6)

    def test_beyond_the_most_it_is_proportional_to_the_sequences(self):
        (found,) = self.AT_ONCE.decode_s(np.array([64.0, 256.0]), 500, np.array([1]))
        assert found[1] == pytest.approx(4 * found[0])

    def test_chunks_of_one_sequence_are_not_mixed_with_batches(self):
        assert self.AT_ONCE.tokens == (1, 16, 64)
        assert self.AT_ONCE.sequences == (1, 4, 16, 64)
        assert attention_s(self.AT_ONCE, 16, [512])[0] == pytest.approx(self.GPU.attention_s(16, 512))

    def test_where_only_chunks_were_timed_one_token_is_predicted_from_them(self):
        chunks = AttentionTimes(campaign_of(HOST.layer_rest(tokens=(4, 16))))
        found = chunks.decode_s(np.array([2.0]), 100, np.array([1]))
        assert found[0, 0] == pytest.approx(2 * HOST.attention_s(1, 100, 1), rel=1e-6)
        assert chunks.longest_decode_context(2) == 256

    def test_the_longest_context_is_that_of_the_batches_around(self):
        short = [found for found in self.GPU.attention() if found.point.sequences < 64 or found.point.context < 1024]
        times = AttentionTimes(campaign_of(short), "cuda:0")
        assert [times.longest_decode_context(batch) for batch in (1, 16, 32, 64)] == [1024, 1024, 128, 128]

    def test_untimed_attention_counts_nothing(self):
        times = AttentionTimes(campaign_of(self.GPU.attention()), "cuda:1")
        assert times.decode_s(np.array([1.0, 4.0]), 100, np.array([1])).tolist() == [[0, 0]]


class TestSmallOps:
    TIMES = SmallOpsTimes(campaign_of(HOST.layer_rest()))

    def test_they_are_a_power_law_between_timed_m(self):
        (found,) = self.TIMES.time_s(np.array([1.0, 5.0, 16.0, 40.0]), np.array([1]))
        assert found == pytest.approx([HOST.small_ops_s(m) for m in (1, 5, 16, 40)])

    def test_beyond_the_last_they_are_proportional_to_m(self):
        assert self.TIMES.time_s(np.array([128.0]), np.array([1]))[0, 0] == pytest.approx(2 * HOST.small_ops_s(64))

    def test_below_the_first_they_are_not_free(self):
        times = SmallOpsTimes(campaign_of([measured(small_ops(16), 1e-3)]))
        assert times.time_s(np.array([1.0]), np.array([1]))[0, 0] == pytest.approx(1e-3)

    def test_untimed_ones_count_nothing(self):
        times = SmallOpsTimes(campaign_of([Failure(small_ops(1), "budget", "the time was up")]))
        assert times.time_s(np.array([1.0, 2.0]), np.array([1, 2, 3])).tolist() == [[0, 0]] * 3

    def test_where_threads_share_them_they_scale_as_measured(self):
        """One token was timed on one thread, so it takes as long on two; 16 take half of the time there."""
        outcomes = [measured(small_ops(1), 1e-4), measured(small_ops(16), 1.6e-3)]
        outcomes.append(measured(replace(small_ops(16), threads=2), 0.8e-3))
        times = SmallOpsTimes(campaign_of(outcomes)).time_s(np.array([1.0, 16.0, 32.0]), np.array([1, 2]))
        assert times == pytest.approx(np.array([[1e-4, 1.6e-3, 3.2e-3], [1e-4, 0.8e-3, 1.6e-3]]))
