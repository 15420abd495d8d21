"""A child process and the parent in it: what one says the other hears, and neither outlives what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import msgspec
import psutil
import pytest

from autotune.bench.child import Child
from autotune.errors import BenchmarkError
from autotune.records import Record


class Word(Record, frozen=True):
    """What is said either way."""

    text: str
    number: float = 0.0


PREAMBLE = """
    import os, sys, time, msgspec
    from autotune.bench.parent import Parent
    from tests.bench.test_child import Word

    parent = Parent()
    words = msgspec.json.Decoder(Word)
"""
ECHO = """
    while (word := parent.hear(words)) is not None:
        print("heard", word.text)
        parent.send(Word(word.text.upper(), word.number))
    parent.send(Word("bye"))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a script as a child; to be entered."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def build(script=ECHO, **environment):
        (tmp_path / "script_of_child.py").write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(script))
        return Child("the test's child", "script_of_child", msgspec.json.Decoder(Word), environment)

    return build


PATIENCE_S = 20.0


def test_what_is_said_is_heard_in_order_and_what_is_printed_is_not(start):
    texts = ["one", "two", "x" * 200_000]
    with start() as child:
        for number, text in enumerate(texts):
            child.send(Word(text, number))
        heard = [child.hear(PATIENCE_S) for _ in texts]
    assert heard == [Word(text.upper(), number) for number, text in enumerate(texts)]


def test_a_child_that_has_nothing_more_to_do_ends_by_itself(start):
    with start() as child:
        child.finish(PATIENCE_S)
        assert child.hear(PATIENCE_S) == Word("bye")
        assert child.hear(PATIENCE_S) is None
        assert child.ends(PATIENCE_S)
    assert child.death().how == "exited with status 0: it said nothing"


def test_a_busy_child_ends_as_well_when_its_parent_has_gone(start):
    with start("time.sleep(3600)") as child:
        child.finish(PATIENCE_S)
        assert child.ends(0.0)
    assert child.death().kind == "crashed"


def test_a_silent_child_is_not_waited_for_beyond_the_time(start):
    with (
        start("time.sleep(3600)") as child,
        pytest.raises(TimeoutError, match=r"the test's child said nothing for 0.1 s"),
    ):
        child.hear(0.1)
    assert not psutil.Process().children()


def test_what_does_not_return_in_time_ends_the_child_even_if_it_holds_the_interpreter(start):
    hog = """
        import ctypes
        parent.expect(3600.0)
        parent.expect(None)
        parent.expect(0.1)
        ctypes.PyDLL(None).sleep(3600)
    """
    with start(hog) as child:
        assert child.ends(PATIENCE_S)
    assert child.death().how.startswith("exited with status 1: ")


@pytest.mark.parametrize(
    ("script", "kind", "how"),
    [
        ("os.kill(os.getpid(), 9)", "out_of_memory", "was killed (SIGKILL), as the system does when memory runs out"),
        ("os.kill(os.getpid(), 15)", "crashed", "died of signal 15 (Terminated)"),
        ("print('first'); sys.exit('last words')", "crashed", "exited with status 1: last words"),
        ("os.write(2, b'x' * 99999 + b'\\n\\xff'); os._exit(2)", "crashed", "exited with status 2: \ufffd"),
        ("os._exit(0)", "crashed", "exited with status 0: it said nothing"),
    ],
)
def test_a_death_is_told_in_words(start, script, kind, how):
    with start(script) as child:
        assert child.hear(PATIENCE_S) is None
        child.send(Word("to nobody"))
        assert child.ends(PATIENCE_S)
    assert child.death() == (kind, how)


def test_a_line_that_was_cut_off_ends_what_is_heard(start):
    with start("parent.send(Word('whole')); parent._events.write(b'{'); parent._events.flush(); os._exit(1)") as child:
        assert child.hear(PATIENCE_S) == Word("whole")
        assert child.hear(PATIENCE_S) is None


def test_the_environment_is_the_parents_with_one_thread_for_blas_and_what_was_asked_for(start, monkeypatch):
    monkeypatch.setenv("INHERITED", "yes")
    names = ["INHERITED", "GIVEN", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    with start(f"parent.send(Word(' '.join(os.environ[name] for name in {names})))", GIVEN="too") as child:
        assert child.hear(PATIENCE_S) == Word("yes too 1 1 1")


def test_a_child_is_gone_when_its_block_is_left_by_an_error(start):
    with pytest.raises(KeyError), start("time.sleep(3600)") as child:
        raise KeyError
    assert not psutil.Process().children()
    assert child.death().kind == "out_of_memory", "it was killed"


def test_a_child_does_not_get_the_parents_ctrl_c(start):
    with start() as child:
        child.send(Word("ready"))
        child.hear(PATIENCE_S)
        (process,) = psutil.Process().children()
        assert os.getpgid(process.pid) != os.getpgid(0)


def test_a_child_that_cannot_be_started_is_an_error(start, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(BenchmarkError, match="could not start the test's child /no/such/python: No such file"), start():
        pass


def test_a_parent_that_died_is_not_told_anything_and_its_child_ends(start, tmp_path):
    """It writes to a pipe that nobody reads, which is no error of its own."""
    script = (
        textwrap.dedent(PREAMBLE) + "time.sleep(0.2)\nfor _ in range(9):\n    parent.send(Word('gone'))\nsys.exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 7
        assert b"Traceback" not in process.stderr.read()
