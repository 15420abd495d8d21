"""A comparison in words, in Markdown, and in the sentence that fails a job."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace

from autotune.compare.report import markdown, regression, table
from autotune.compare.statistics import Interval
from autotune.compare.verdict import Change, Compared, Comparison, judge, on_the_whole
from tests.compare.sides import ABOUT, CONFIGURATION


def comparison(**overrides: Any) -> Comparison:
    compared = Compared(
        hardware_class=ABOUT.hardware_class,
        model_name="a_model|`x`",
        weight_format=("I2_S", "I2_S"),
        workload=ABOUT.workload,
        configuration=(CONFIGURATION, CONFIGURATION),
        runs=(12, 12),
        alike=True,
        changes=(
            Change("TPOT", 0.02, 0.022, 0.1, 0.08, 0.12, "worse", True),
            Change("TTFT", 0.5, 0.5, 0.0, -0.01, 0.01, "same", True),
            Change("tokens/s", 100.0, 92.0, -0.08, -0.1, -0.06, "worse", True),
        ),
        verdict="worse",
    )
    found = Comparison(
        mode="interleaved",
        base="BASE (old): autotune 0.1.0",
        head="HEAD (new): autotune 0.2.0",
        margin=0.03,
        verdict="worse",
        compared=(compared,),
        notes=("both run the saved configuration of BASE",),
        spent_s=31.4,
    )
    return replace(found, **overrides)


def test_a_table_has_all_a_person_asks_for() -> None:
    """What was compared, each metric with its interval, aligned; the verdict last."""
    lines = table(comparison()).splitlines()
    assert lines[:2] == ["BASE (old): autotune 0.1.0", "HEAD (new): autotune 0.2.0"]
    head = next(index for index, line in enumerate(lines) if line.startswith("metric"))
    assert lines[head + 1].split() == ["TPOT", "20", "ms", "22", "ms", "+10.0%", "+8.0%", "to", "+12.0%", "worse"]
    assert lines[head + 3].startswith("tokens/s  100")
    assert len({line.index("worse") for line in (lines[head + 1], lines[head + 3])}) == 1
    assert lines[-1] == "verdict: worse (margin 3.0%, 0 rounds in 31 s)"


def test_markdown_is_a_table_that_github_shows() -> None:
    """As many cells in every row, and names can't break out of them."""
    text = markdown(comparison())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert text.startswith("### autotune compare: ❌ worse")
    assert r"a\_model\|\`x\`" in text


def test_metrics_that_do_not_count_stand_in_brackets() -> None:
    """Where the sides ran different configurations, which both are shown."""
    found = comparison()
    (compared,) = found.compared
    changes = (replace(compared.changes[0], decides=False), compared.changes[2])
    batched = replace(CONFIGURATION, batch_size=8)
    compared = replace(compared, alike=False, changes=changes, configuration=(CONFIGURATION, batched), runs=(3, 2))
    text = table(replace(found, mode="recorded", compared=(compared,), spent_s=None))
    assert "(worse)" in text
    assert "not all ran the same: tokens/s decides" in text
    assert "3 and 2 records of each side" in text
    assert text.count(" ran: ") == 2
    assert "TPOT" not in regression(replace(found, compared=(compared,)))


def test_the_sentence_has_the_figures() -> None:
    """Of what is worse and of nothing else."""
    sentence = regression(comparison())
    assert sentence == (
        "HEAD is slower than BASE beyond the margin of 3.0%: TPOT +10.0%, 20 ms to 22 ms (95 % interval +8.0% to "
        "+12.0%) of a_model|`x`, server; tokens/s -8.0%, 100 to 92 (95 % interval -10.0% to -6.0%) of a_model|`x`, "
        "server"
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.04, 0.2, "worse"),
        (0.02, 0.2, "can't tell"),
        (-0.02, 0.02, "same"),
        (0.01, 0.02, "same"),
        (-0.2, 0.2, "can't tell"),
        (-0.2, -0.02, "can't tell"),
        (-0.2, -0.04, "better"),
    ],
)
def test_a_verdict_takes_the_whole_interval(low: float, high: float, verdict: str) -> None:
    """Beyond the margin on one side, or within it; what lies across one of its ends can't be told."""
    assert judge(Interval(low, (low + high) / 2, high), 0.03) == verdict


def test_the_worst_news_counts() -> None:
    """A job must hear of what is worse, and must not be told that all is well where something is open."""
    assert on_the_whole(["same", "better", "worse", "can't tell"]) == "worse"
    assert on_the_whole(["same", "better", "can't tell"]) == "can't tell"
    assert on_the_whole(["same", "better"]) == "better"
    assert on_the_whole(["same"]) == "same"
