"""The exam of a decision, as a user meets it: real processes, a small model."""

from __future__ import annotations

import msgspec
import pytest

from autotune.records import Part, PartRun, Verification, part_of
from tests.cli.shop import Shop, assert_one_sentence

EXAM = ("--grid", "6", "--repeats", "1", "--budget", "6")


def test_a_document_holds_grid_and_exam_and_nothing_is_saved(empty: Shop) -> None:
    """As many parts as were allowed, the chosen one's first; what follows from them; progress on standard error."""
    answer = empty.run("verify", "small.json", *EXAM, "--json")
    assert answer.code == 0, answer.err
    found = msgspec.json.decode(answer.out, type=Verification)
    (exam,) = found.exams
    assert (found.model, found.grid.rounds) == ("small", 1)
    parts: set[Part] = {each.outcome.part for each in found.grid.parts if isinstance(each.outcome, PartRun)}
    assert 2 <= len(found.grid.parts) <= 6 < found.grid.feasible_parts
    own = {part_of(exam.chosen, exam.workload, phase) for phase in ("decode", "prefill")}
    assert {(part.phase, part.threads, part.size) for part in own} <= {
        (part.phase, part.threads, part.size) for part in parts
    }
    assert exam.measured is not None
    assert exam.best_measured is not None
    assert exam.best_measured.tokens_per_s >= exam.measured.tokens_per_s
    assert exam.regret is not None
    assert exam.regret >= 0
    assert "fallback" in [baseline.name for baseline in exam.baselines]
    assert exam.exhaustive_time_s > 0
    assert [use.device for use in exam.memory] == ["cpu"]
    told = [line.partition(":")[0] for line in answer.err.splitlines()]
    assert list(dict.fromkeys(told)) == ["timing", "running", "measuring"]
    assert not empty.entries()


def test_a_person_gets_tables(empty: Shop) -> None:
    """On standard error only; --quiet leaves them and no more, and nothing is saved."""
    answer = empty.run("verify", "small.json", *EXAM, "--workload", "chat", "--quiet")
    assert (answer.code, answer.out) == (0, b""), answer.err
    assert answer.err.startswith("small in I2_S")
    for words in ("chat:", "chosen", "best measured", "fallback", "regret", "memory"):
        assert words in answer.err, words
    assert "Traceback" not in answer.err
    assert "timing:" not in answer.err
    assert not empty.entries()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("small.json", "--grid", "0"), 2, "--grid must be a whole number of at least 1, got 0"),
        (("small.json", "--grid", "-1"), 2, "got -1"),
        (("small.json", "--repeats", "0"), 2, "--repeats must be a whole number of at least 1, got 0"),
        (("small.json", "--budget", "nan"), 2, "got nan"),
        (("small.json", "--budget", "0.1"), 6, "a budget of 0.1 s is too small"),
        (("small.json", "--workload", "serve"), 2, "one of chat, server, offline, got 'serve'"),
        (("small.json", "--prompt", "0"), 2, "--prompt must be"),
        (("small.json", "--kernel", "abacus"), 2, "--kernel must be one of "),
        (("bitnet-b1.58-2B4T",), 3, "bitnet-b1.58-2B-4T"),
        (("missing.json",), 3, "expected a config.json, a GGUF file or a preset"),
    ],
)
def test_an_exam_that_is_not_possible_is_refused_before_anything_is_timed(
    empty: Shop, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """One sentence, the documented exit code, nothing saved."""
    answer = empty.run("verify", *arguments)
    assert_one_sentence(answer, code)
    assert words in answer.err
    assert not empty.entries()
