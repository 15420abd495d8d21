"""Real sides with a small model, and the command as a user and a CI job meet it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from autotune.compare.interleave import Wish, compare_programs
from autotune.compare.program import LackOfMemoryError, Program, Side
from autotune.compare.protocol import Message, Run, Start
from autotune.compare.verdict import Comparison
from autotune.errors import BenchmarkError
from tests.cli.shop import Shop, assert_one_sentence
from tests.compare.sides import side
from tests.history.records import build_record, fill

HERE = Program("HERE", sys.executable, None)


@pytest.fixture
def small(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> str:
    """The small model, whose saved result this process' children find."""
    for name in ("AUTOTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, shop.environment()[name])
    return str(shop.model)


class Unreadable(Message, frozen=True, tag="run"):
    """A request of another version."""

    phase: str
    seconds: float


def test_a_side_says_what_it_is_and_does_what_it_is_asked_to(small: str) -> None:
    """Raw samples of both phases; what it can't do it says, and goes on."""
    with Side(HERE, small, "server", None) as running:
        about = running.about
        assert (about.model_name, about.weight_format, about.origin) == ("small", "I2_S", "saved")
        assert about.workload.name == "server"
        assert Path(about.folder, "autotune", "compare").is_dir()
        short = replace(about.workload, prompt_tokens=32)
        chosen = replace(about.configuration, prefill_chunk=32)
        with pytest.raises(BenchmarkError, match="HERE: it was asked to run before anything was started"):
            running.run(Run("decode", 0.02))
        with pytest.raises(
            LackOfMemoryError, match=r"HERE: the configuration needs .* on cpu, where .* may be planned"
        ):
            running.start(Start(replace(chosen, batch_size=10**7), short))
        impossible = {
            "HERE: it has timed nothing on cuda:0": {"device_layers": {"cuda:0": 2}},
            "HERE: it could not load it: .*expected 2 layers": {"device_layers": {"cpu": 1}},
        }
        for complaint, change in impossible.items():
            with pytest.raises(BenchmarkError, match=complaint):
                running.start(Start(replace(chosen, **change), short))
        for _ in range(2):
            running.start(Start(chosen, short))
            decode_s, prefill_s = running.run(Run("decode", 0.02)), running.run(Run("prefill", 0.02))
            assert len(decode_s) >= 3
            assert min(decode_s + prefill_s) > 0
        with pytest.raises(BenchmarkError, match="HERE: it can't read what it is asked to do"):
            running.run(Unreadable("train", 1.0))  # type: ignore[arg-type]
        assert running.run(Run("decode", 0.02))
        running.stop()


def test_a_side_that_was_never_tuned_times_its_kernels_first(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And chooses by them; nothing is saved by that."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "empty"))
    with Side(HERE, small, "chat", "I2_S") as running:
        assert (running.about.origin, running.about.workload.name) == ("predicted", "chat")
        assert running.about.configuration.batch_size == 1
    assert not list(tmp_path.glob("empty/**/*.json"))


def test_the_same_interpreter_twice_is_no_worse(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a margin that no disturbance reaches; every round is kept."""
    monkeypatch.setattr("autotune.compare.interleave.LOOKS", (4,))
    monkeypatch.setattr("autotune.compare.interleave.alpha_of_look", lambda *_, last: 0.2)
    monkeypatch.setattr("autotune.compare.turns._PHASE_S", 0.05)
    found = compare_programs(HERE, HERE, Wish(small, "server", None, None, 0.9, 60.0))
    assert found.verdict in ("same", "can't tell")
    assert len(found.rounds) == 4
    assert any(note.startswith("both sides run the same autotune") for note in found.notes)
    assert found.notes[0] == "both run the saved configuration of BASE"


def test_a_slower_head_fails_the_job_after_the_table(shop: Shop) -> None:
    """Exit code 11, one sentence with the figures, and the table on standard output; the sides are synthetic."""
    base, head = side(shop.folder / "base"), side(shop.folder / "head", seed=1, slower=1.1)
    answer = shop.run("compare", base, head, "--model", "small.json", "--quiet")
    assert answer.code == 11
    assert answer.err.startswith("autotune: HEAD is slower than BASE beyond the margin of 3.0%: TPOT +")
    assert answer.err.count("\n") == 1
    assert answer.out.decode().splitlines()[-1].startswith("verdict: worse")
    markdown = shop.run("compare", head, base, "--model", "small.json", "--markdown")
    assert markdown.code == 0
    assert markdown.err.startswith("measuring: 0 of 8 runs")
    assert markdown.out.decode().startswith("### autotune compare: ✅ better")


def test_records_are_compared_by_commit(shop: Shop) -> None:
    """In the folder of results, whose default is results/."""
    fill(
        shop.folder / "results",
        build_record(hardware_class="synthetic"),
        build_record(hardware_class="synthetic", commit="ffee" * 10),
    )
    answer = shop.run("compare", "0a1b2c3d", "ffeeffee", "--json")
    assert answer.code == 0, answer.err
    assert msgspec.json.decode(answer.out, type=Comparison).mode == "recorded"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("BASE", "BASE"), "--model is needed"),
        (("BASE", "0a1b2c3d"), "can be run, and HEAD (0a1b2c3d) is records"),
        (("0a1b2c3d", "BASE"), "can be run, and BASE (0a1b2c3d) is records"),
        (("BASE", "nowhere"), "HEAD (nowhere): expected a Python executable"),
        (("0a1b2c3d", "BASE", "--margin", "0"), "--margin must be more than 0 and less than 1, got 0"),
        (("a", "b", "--json", "--markdown"), "--json and --markdown both say what to print"),
        (("0a1b2c3d", "ffee", "--budget", "9"), "--budget is about running in turns"),
        (("0a1b2c3d", "ffee", "--configuration-from", "own"), "--configuration-from is about running in turns"),
        (("BASE", "BASE", "--model", "small.json", "--workload", "no"), "the workload must be one of"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(shop: Shop, words: tuple[str, ...], told: str) -> None:
    """Exit code 2."""
    side(shop.folder / "BASE")
    fill(shop.folder / "results", build_record(), build_record(commit="ffee" * 10))
    answer = shop.run("compare", *words)
    assert_one_sentence(answer, 2)
    assert told in answer.err


def test_a_model_that_is_missing_is_the_models_fault(shop: Shop) -> None:
    """And no side's: nothing is started."""
    side(shop.folder / "BASE")
    assert_one_sentence(shop.run("compare", "BASE", "BASE", "--model", "nowhere.json"), 3)


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def engines(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "autotune.engine.worker" in process.cmdline():
                yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_stays_behind(shop: Shop, number: signal.Signals) -> None:
    """However a comparison ends: both sides and the engine of the one that runs are gone in a moment."""
    words = ("--model", "small.json", "--budget", "60", "--quiet")
    with shop.start("compare", sys.executable, sys.executable, *words, start_new_session=True) as process:
        try:
            family: list[psutil.Process] = []

            def has_engine() -> bool:
                family[:] = psutil.Process(process.pid).children(recursive=True)
                return any(engines(family))

            wait_until(has_engine, "the start of an engine")
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert len(family) >= 3
    assert out == b""
    if number == signal.SIGINT:
        assert (process.returncode, err) == (130, b"autotune: stopped by Ctrl-C\n")
    wait_until(lambda: all(map(is_gone, family)), "the end of all processes")
