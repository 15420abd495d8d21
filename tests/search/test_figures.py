"""Figures from samples: put together by hand, intervals, and what counts as better."""

import math

import pytest

from autotune.records import Configuration, PartRun, part_of
from autotune.search.figures import Runs, Standing, apart, beats
from tests.builders import build_workload

CONFIGURATION = Configuration({"cpu": 2}, "cpu", 2, 4, 8, 128)
MANY = (0.98, 0.99, 1.0, 1.0, 1.0, 1.01, 1.02, 1.0, 1.0)


def workload_of(name="server"):
    return build_workload(name=name, prompt_tokens=100, output_tokens=11)


def run_of(phase, *samples_s, workload=None):
    part = part_of(CONFIGURATION, workload or workload_of(), phase)
    return PartRun(part, samples_s, {"cpu": samples_s})


def test_figures_follow_from_the_medians_of_both_parts():
    """Eight prompts of 0.5 s, then ten steps of 0.1 s that give eight tokens each."""
    standing = Runs(workload_of(), 0.01, [run_of("decode", 0.2, 0.1, 0.1), run_of("prefill", 0.5)]).standing(
        CONFIGURATION
    )
    assert (standing.measured.tpot_s, standing.measured.ttft_s) == (0.1, 0.5)
    assert standing.measured.tokens_per_s == pytest.approx(8 * 11 / (8 * 0.5 + 10 * 0.1))
    assert standing.costs == pytest.approx((5.0 / 88, 0.5))


def test_chat_counts_steps_before_prompts():
    workload = workload_of("chat")
    runs = Runs(workload, 0.01, [run_of("decode", 0.1), run_of("prefill", 0.5)])
    assert runs.standing(CONFIGURATION).costs == (0.1, 0.5)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_half_of_a_configuration_has_no_figures(phase):
    assert Runs(workload_of(), 0.01, [run_of(phase, 0.1)]).standing(CONFIGURATION) is None


def test_samples_of_a_part_are_pooled_in_the_order_taken():
    runs = Runs(workload_of(), 0.01, [run_of("decode", 3.0), run_of("prefill", 9.0), run_of("decode", 1.0, 2.0)])
    decode, prefill = runs.all()
    assert decode.samples_s == decode.device_s["cpu"] == (3.0, 1.0, 2.0)
    assert prefill.samples_s == (9.0,)


def test_a_device_that_only_some_samples_tell_of_keeps_them():
    one = run_of("decode", 1.0)
    other = PartRun(one.part, (2.0,), {"cuda:0": (0.5,)})
    (pooled,) = Runs(workload_of(), 0.01, [one, other]).all()
    assert pooled.device_s == {"cpu": (1.0,), "cuda:0": (0.5,)}


def test_the_interval_is_that_of_what_the_workload_is_after():
    chat, server = (
        Runs(workload, 0.01, [run_of("decode", *MANY), run_of("prefill", 0.5)]).standing(CONFIGURATION)
        for workload in (workload_of("chat"), workload_of())
    )
    assert chat.measured.relative_interval == pytest.approx(0.01)
    assert server.measured.relative_interval is None, "one prompt tells no interval"
    both = Runs(workload_of(), 0.01, [run_of("decode", *MANY), run_of("prefill", *MANY)]).standing(CONFIGURATION)
    # Errors of eight prompts, which are one and the same, and of ten steps.
    assert both.measured.relative_interval == pytest.approx(math.hypot(8 * 0.01, 10 * 0.01) / 18)


def test_few_samples_are_as_uncertain_as_the_noise_says():
    """One sample is known to 2.8 times it, the t quantile of four degrees of freedom; more and alike ones less."""
    runs = Runs(workload_of(), 0.01)
    margins = [runs.margin(run_of("decode", *[1.0] * count)) for count in range(1, 6)]
    assert margins[0] == pytest.approx(0.02776)
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] > 0


def test_few_samples_that_differ_are_more_uncertain():
    runs = Runs(workload_of(), 0.01)
    assert runs.margin(run_of("decode", 1.0, 1.2, 1.0)) > 3 * runs.margin(run_of("decode", 1.0, 1.01, 1.0))


def test_the_first_cost_that_differs_beyond_the_noise_decides():
    assert beats((0.9, 9.0), (1.0, 1.0), 0.05)
    assert not beats((1.0, 1.0), (0.9, 9.0), 0.05)
    assert beats((1.01, 0.9), (1.0, 1.0), 0.05)
    assert not beats((1.01, 0.99), (1.0, 1.0), 0.05)


def standing_of(costs, margins_s):
    return Standing(CONFIGURATION, None, costs, margins_s)


@pytest.mark.parametrize(
    ("costs", "margins_s", "expected"),
    [
        ((1.3, 1.0), (0.1, 0.1), True),  # further apart than both margins
        ((1.1, 1.0), (0.1, 0.1), False),  # either could be the better
        ((1.1, 1.0), (0.01, 0.1), False),  # the other's own margin is too wide
        ((1.0, 1.3), (0.1, 0.1), True),  # the same first cost: the next one tells
        ((1.0, 1.1), (0.1, 0.1), False),
        ((1.0, 1.0), (0.1, 0.1), True),  # the same parts
    ],
)
def test_two_are_apart_once_one_is_known_to_be_better(costs, margins_s, expected):
    assert apart(standing_of((1.0, 1.0), (0.1, 0.1)), standing_of(costs, margins_s), 0.02) is expected


def test_two_that_are_known_within_the_noise_need_no_more_samples():
    assert apart(standing_of((1.0, 1.0), (0.01, 1.0)), standing_of((1.005, 1.0), (0.01, 1.0)), 0.02)
