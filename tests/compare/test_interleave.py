"""When a comparison stops and what it then says, with simulated rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.compare.interleave import Frame, Wish, play_out, what_would_tell
from autotune.compare.statistics import LOOKS
from autotune.compare.turns import Pair
from autotune.compare.verdict import Change, Compared, Pace
from autotune.errors import BudgetError
from tests.builders import build_workload
from tests.compare.sides import ABOUT, CONFIGURATION

FRAME = Frame((ABOUT, ABOUT), (CONFIGURATION, CONFIGURATION), ABOUT.workload)


def wish(margin: float = 0.03, budget_s: float = 40.0) -> Wish:
    return Wish("model", "server", None, None, margin, budget_s)


class Clock:
    """A clock that every round moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def synthetic(
    clock: Clock, seed: int, *, noise: float, decode: float = 1.0, prefill: float = 1.0, drift: float = 0.0
) -> Callable[[], Pair]:
    """Rounds of two synthetic sides: HEAD takes ``decode`` and ``prefill`` times as long as BASE.

    Both become slower by ``drift`` a round, and each round of each side has noise of its own.
    """
    rng = np.random.default_rng(seed)

    def pace(by_decode: float, by_prefill: float) -> Pace:
        slower = (1 + drift) ** clock.now_s
        tpot_s, ttft_s = (0.02, 0.5) * np.exp(rng.normal(0, noise, 2)) * slower
        return Pace(float(tpot_s) * by_decode, float(ttft_s) * by_prefill)

    def play() -> Pair:
        clock.now_s += 1
        return pace(1.0, 1.0), pace(decode, prefill)

    return play


def outcome(seed: int, *, budget_s: float = 60.0, frame: Frame = FRAME, **how: float) -> tuple[int, Compared]:
    clock = Clock()
    rounds, compared, _ = play_out(frame, synthetic(clock, seed, **how), wish(budget_s=budget_s), clock=clock)  # type: ignore[arg-type]
    return len(rounds), compared


@pytest.mark.parametrize(("noise", "allowed"), [(0.005, 0), (0.02, 0), (0.1, 7)])
def test_the_same_against_itself_stays_quiet(noise: float, allowed: int) -> None:
    """None of 150 is worse or better; where noise is far beyond the margin, as many as the level allows."""
    verdicts = [outcome(seed, noise=noise)[1].verdict for seed in range(150)]
    assert sum(verdict in ("worse", "better") for verdict in verdicts) <= allowed


def test_on_a_quiet_host_the_same_is_the_same_at_the_first_look() -> None:
    """And not only not known to differ."""
    for seed in range(30):
        rounds, compared = outcome(seed, noise=0.004, drift=0.01)
        assert (rounds, compared.verdict) == (LOOKS[0], "same")


@pytest.mark.parametrize(("decode", "prefill", "slower"), [(1.1, 1.0, 0), (1.0, 1.1, 1), (1.1, 1.1, 0)])
def test_a_tenth_slower_is_caught(decode: float, prefill: float, slower: int) -> None:
    """In either half of the work, in every one of 60 comparisons with noise of 2 % in each round."""
    missed = 0
    for seed in range(60):
        _, compared = outcome(seed, noise=0.02, decode=decode, prefill=prefill)
        assert compared.verdict == "worse"
        change = compared.changes[slower]
        assert 0 < change.change < 0.2
        missed += not change.low <= 0.1 <= change.high
    assert missed <= 3  # 5 %


def test_a_tenth_faster_is_better() -> None:
    """Of all metrics; tokens/s rise."""
    for seed in range(20):
        _, compared = outcome(seed, noise=0.01, decode=1 / 1.1, prefill=1 / 1.1)
        assert compared.verdict == "better"
        per_s = compared.changes[2]
        assert (per_s.metric, per_s.verdict) == ("tokens/s", "better")
        assert per_s.low < 0.1 < per_s.high
        assert per_s.head > per_s.base


def test_a_change_within_the_margin_is_the_same() -> None:
    """One per cent is known to be there, and is no reason to fail a job."""
    _, compared = outcome(1, noise=0.001, decode=1.01)
    assert compared.verdict == "same"
    assert compared.changes[0].low > 0


def test_drift_hits_both_alike() -> None:
    """A host that slows down by 2 % a round is twice as slow in the end."""
    _, compared = outcome(3, noise=0.005, drift=0.02)
    assert compared.verdict == "same"


def test_where_configurations_differ_only_the_workload_is_asked() -> None:
    """A larger batch has slower steps; what the server is after has not become worse."""
    batched = replace(CONFIGURATION, batch_size=2 * CONFIGURATION.batch_size)
    frame = FRAME._replace(configurations=(CONFIGURATION, batched))
    _, compared = outcome(4, noise=0.005, decode=1.4, frame=frame)
    assert not compared.alike
    assert [change.verdict for change in compared.changes] == ["worse", "same", "better"]
    assert [change.decides for change in compared.changes] == [False, False, True]
    assert compared.verdict == "better"


def test_a_chat_with_another_configuration_asks_for_tpot() -> None:
    """It serves one sequence, and what counts is how fast that comes."""
    workload = build_workload(name="chat")
    other = replace(CONFIGURATION, decode_threads=1)
    frame = Frame((ABOUT, ABOUT), (CONFIGURATION, other), workload)
    _, compared = outcome(5, noise=0.005, decode=1.2, prefill=0.5, frame=frame)
    assert [change.decides for change in compared.changes] == [True, False, False]
    assert compared.verdict == "worse"


def test_other_weight_formats_are_no_same_configuration() -> None:
    """What one side chose with --format auto."""
    frame = FRAME._replace(abouts=(ABOUT, replace(ABOUT, weight_format="TL2")))
    assert not outcome(6, noise=0.005, frame=frame)[1].alike


def test_the_time_ends_a_comparison_that_cannot_be_told() -> None:
    """Between two looks the last one is brought forward."""
    rounds, compared = outcome(7, noise=0.3, budget_s=20)
    assert LOOKS[2] < 21 == rounds < LOOKS[3]
    assert compared.verdict == "can't tell"
    assert compared.runs == (21, 21)


def test_the_last_look_spends_what_is_left() -> None:
    """One round after the first look there are too few for what the second may spend, but not for all that is left."""
    rounds, compared = outcome(7, noise=0.3, budget_s=8.5)
    assert compared.runs == (rounds, rounds) == (LOOKS[0] + 1, LOOKS[0] + 1)
    narrow, wide = (outcome(7, noise=0.3, budget_s=budget_s)[1].changes[0] for budget_s in (11.5, 12.5))
    assert narrow.high - narrow.low < wide.high - wide.low


def test_after_the_last_look_it_ends() -> None:
    """However much time there is."""
    assert outcome(8, noise=0.5, budget_s=3600)[0] == LOOKS[-1]


def test_a_budget_that_reaches_no_look_is_refused_after_two_rounds() -> None:
    """With the time that it takes; the first round, which may compile, doesn't count for the rest."""
    clock = Clock()
    played = []

    def play() -> Pair:
        clock.now_s += 30 if not played else 10
        played.append(1)
        return Pace(0.02, 0.5), Pace(0.02, 0.5)

    with pytest.raises(BudgetError, match="about 100 s"):
        play_out(FRAME, play, wish(budget_s=40), clock=clock)
    assert len(played) == 2


def test_progress_is_told_before_each_round() -> None:
    """The share of the budget, the rounds done, and the look that they lead to."""
    clock, told = Clock(), []
    play_out(
        FRAME,
        synthetic(clock, 9, noise=0.001),
        wish(budget_s=16),
        clock=clock,
        progress=lambda *now: told.append(now),
    )
    assert told == [(done / 16, done, LOOKS[0]) for done in range(LOOKS[0])]


def told(noise: float, spent_s: float = 16.0, **how: float) -> str:
    """What is said of eight synthetic rounds."""
    play = synthetic(Clock(), 3, noise=noise, **how)
    rounds = [play() for _ in range(8)]
    changes = [Change("TPOT", 0.02, 0.02, 0.0, -0.1, 0.1, "can't tell", True)] + [
        Change(metric, 1.0, 1.0, 0.0, 0.0, 0.0, "same", True) for metric in ("TTFT", "tokens/s")
    ]
    return what_would_tell(FRAME, rounds, changes, wish(), spent_s)


def test_what_would_tell_is_a_look_and_the_budget_that_reaches_it() -> None:
    """And which metric is open."""
    sentence = "what became of TPOT can't be told after 8 rounds; telling takes about 12 rounds, that is --budget 24"
    assert told(0.004) == sentence


@pytest.mark.parametrize(("noise", "decode"), [(0.3, 1.0), (0.02, 1.03)])
def test_what_no_look_would_tell_is_said(noise: float, decode: float) -> None:
    """The host is too loud for the margin, or what became of it lies right at the margin."""
    assert "quieter host" in told(noise, decode=decode)


def test_medians_and_changes_are_in_the_units_of_the_metric() -> None:
    """Seconds for TPOT and TTFT, and tokens per second of the whole batch over whole requests."""
    _, compared = outcome(10, noise=1e-6, decode=1.1)
    tpot, ttft, per_s = compared.changes
    assert (tpot.base, tpot.head) == (pytest.approx(0.02, rel=1e-4), pytest.approx(0.022, rel=1e-4))
    assert ttft.base == pytest.approx(0.5, rel=1e-4)
    workload, batch = ABOUT.workload, CONFIGURATION.batch_size
    request_s = batch * 0.5 + (workload.output_tokens - 1) * 0.02
    assert per_s.base == pytest.approx(batch * workload.output_tokens / request_s, rel=0.02)
    assert math.isclose(per_s.change, per_s.head / per_s.base - 1, rel_tol=1e-3)
    assert per_s.low < per_s.change < per_s.high < 0
