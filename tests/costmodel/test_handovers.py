"""Entering and leaving a GPU, from synthetic handovers."""

from __future__ import annotations

import pytest

from autotune.costmodel.handovers import Handovers
from autotune.costmodel.passes import Passes
from autotune.records import Point
from tests.builders import build_workload
from tests.costmodel.synthetic import campaign_of, measured
from tests.costmodel.synthetic_gpu import HANDOVER_BYTES, SyntheticGpu

GPU = SyntheticGpu()
HIDDEN = 256
PASSES = Passes(build_workload(prompt_tokens=100), (1, 16), (32, 64))


def handovers(times_s, device="cuda:0"):
    """Of handovers by their bytes."""
    points = {size: Point("handover", "cuda:0", "pinned", 1, k_in=size) for size in times_s}
    return Handovers(campaign_of([measured(points[size], time_s) for size, time_s in times_s.items()]), device)


LINEAR = handovers({size: GPU.handover_s(size) for size in HANDOVER_BYTES})


def test_a_crossing_is_half_a_handover_of_the_steps_activations():
    """Four bytes for each element of each token."""
    costs = LINEAR.costs(HIDDEN, PASSES)
    by_hand = [GPU.handover_s(batch * HIDDEN * 4) / 2 for batch in (1, 16)]
    assert costs.decode_crossing_s == pytest.approx(by_hand, rel=1e-6)
    assert costs.decode_token_s == pytest.approx(by_hand[0], rel=1e-6)


def test_a_prompt_crosses_once_per_chunk():
    """100 tokens are three chunks of 32 and 4 more, or one of 64 and 36 more."""
    costs = LINEAR.costs(HIDDEN, PASSES)
    for size, found in ((HIDDEN * 4, costs.prefill_crossing_s), (8, costs.prefill_token_s)):
        by_hand = [
            (3 * GPU.handover_s(32 * size) + GPU.handover_s(4 * size)) / 2,
            (GPU.handover_s(64 * size) + GPU.handover_s(36 * size)) / 2,
        ]
        assert found == pytest.approx(by_hand, rel=1e-6)


def test_larger_ones_than_were_timed_follow_the_bandwidth():
    costs = LINEAR.costs(1 << 20, PASSES)
    assert costs.decode_crossing_s[1] == pytest.approx(GPU.handover_s(16 << 22) / 2, rel=1e-6)


def test_none_is_faster_than_the_fastest_that_was_timed():
    """A line through these would have next to no latency, though nothing took less than 20 us."""
    found = handovers({8: 2e-5, 1 << 20: 4e-4, 1 << 21: 9e-4})
    assert found.costs(HIDDEN, PASSES).prefill_token_s[0] >= 4 * 2e-5 / 2


def test_noise_among_short_ones_does_not_make_longer_ones_free():
    """Slower for 8 bytes than for 10 kB: the same for all, not less and less."""
    found = handovers({8: 2.1e-5, 10_240: 2e-5}).costs(1 << 20, PASSES)
    assert found.decode_crossing_s == pytest.approx([2.05e-5 / 2] * 2, rel=0.01)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_without_any_pays_nothing(device):
    found = handovers({8: 2e-5}, device)
    assert not found.timed
    for costs in found.costs(HIDDEN, PASSES):
        assert not costs.any()
