"""Configurations that crash, hang or run out of memory, in real processes: each becomes a failure, and the next runs.

And nothing of an engine stays behind: not when its parent is killed, and not on Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from autotune.engine import reference
from autotune.engine.messages import Patience
from autotune.records import PartRun, RunFailure
from tests.engine.engines import WORKLOAD, behaving, build_engine

PATIENCE_S = 20
IMPATIENT = Patience(factor=0.1, floor_s=1.5, compile_s=2.0, gpu_s=4.0)
"""To save time: the stand-in says that a step takes a quarter of a second."""

FAULT_KINDS = {
    "crashing": ("crashed", "while {}, the engine's process died of signal 11 (Segmentation fault)"),
    "aborting": ("crashed", "while {}, the engine's process died of signal 6"),
    "exiting": ("crashed", "while {}, the engine's process exited with status 3"),
    "killed": ("out_of_memory", "while {}, the engine's process was killed (SIGKILL), as the system does"),
    "exhausting": ("out_of_memory", "not enough memory: no room for 7 elephants"),
    "exhausting a GPU": ("out_of_memory", "RuntimeError: CUDA out of memory. Tried to allocate 7 GiB."),
    "raising": ("crashed", "RuntimeError: out of luck"),
    "refusing": ("unsupported", "ValueError: expected an even k_in, got 257"),
    "garbling": ("crashed", "while {}, the engine's process stopped making sense, so it was ended"),
    "hanging": ("hung", "while {}, the engine's process said nothing for"),
    "hogging": ("hung", "while {}, the engine's process said nothing for"),
}
SCRIPT = """
    from autotune.engine import reference
    from autotune.engine.messages import Patience
    from tests.engine.engines import WORKLOAD, behaving, build_engine

    reference._PATIENCE = Patience(1.0, {floor_s}, {floor_s}, {floor_s})
    with build_engine() as engine:
        engine.measure(behaving("{name}"), WORKLOAD, "decode", at_least=1, at_most_s=0.0)
"""


@pytest.fixture(scope="module")
def engine():
    """One engine for all faults, whose process waits for nothing long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_PATIENCE", IMPATIENT)
        with build_engine(torch_devices={"misplaced": "cpu"}) as started:
            yield started


def measure(engine, configuration, phase="decode"):
    return engine.measure(configuration, WORKLOAD, phase, at_least=1, at_most_s=0.0)


@pytest.mark.parametrize(
    ("prefix", "doing"), [("", "preparing kernels"), ("late-", "running")], ids=["at once", "when it runs"]
)
@pytest.mark.parametrize("name", FAULT_KINDS)
def test_whatever_goes_wrong_is_a_failure_and_the_next_configuration_runs(engine, name, prefix, doing):
    kind, message = FAULT_KINDS[name]
    configuration = behaving(prefix + name)
    found = measure(engine, configuration)
    assert isinstance(found, RunFailure)
    assert (found.kind, found.part.size) == (kind, configuration.batch_size)
    assert message.format(doing) in found.message
    assert "\n" not in found.message
    assert isinstance(measure(engine, behaving()), PartRun)


def test_what_a_kernel_prints_does_not_get_among_the_answers(engine):
    assert isinstance(measure(engine, behaving("late-babbling")), PartRun)
    assert isinstance(measure(engine, behaving("babbling"), "prefill"), PartRun)


@pytest.mark.parametrize("name", ["late-killed", "raising"])
def test_a_failure_while_preparing_or_timing_kernels_is_a_value_too(engine, name):
    share = engine.overhead_share(behaving(name), WORKLOAD)
    assert share is None
    assert isinstance(measure(engine, behaving()), PartRun)


def test_weights_that_do_not_fit_are_a_failure_of_that_placement(engine):
    elsewhere = behaving(device_layers={"misplaced": 2})
    found = engine.prepare(elsewhere, WORKLOAD)
    assert isinstance(found, RunFailure)
    assert (found.kind, found.message) == ("out_of_memory", "not enough memory: no room for the weights")
    assert engine.prepare(behaving(), WORKLOAD) is None


def test_a_process_that_died_while_it_had_nothing_to_do_is_nobodys_failure(engine):
    measure(engine, behaving())
    (process,) = psutil.Process().children()
    process.kill()
    until(lambda: is_gone(process))
    assert isinstance(measure(engine, behaving()), PartRun)


def test_nor_is_it_when_it_dies_just_before_it_takes_up_a_request(engine):
    measure(engine, behaving())
    (process,) = psutil.Process().children()
    process.suspend()
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    assert isinstance(measure(engine, behaving()), PartRun)
    killer.join()


def test_after_ctrl_c_an_engine_that_is_used_again_gives_no_stale_answers(engine):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(engine, behaving("hanging"))
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert not psutil.Process().children()
    found = measure(engine, behaving(), "prefill")
    assert found.part.phase == "prefill"


# Nothing stays behind


@pytest.fixture
def start(tmp_path):
    """Runs a script in a process of its own; returns it with the engine's process, once that hangs in a kernel."""
    started = []

    def run(name, floor_s=60.0):
        log = tmp_path / "log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            "STANDIN_LOG": str(log),
        }
        script = textwrap.dedent(SCRIPT.format(name=name, floor_s=floor_s))
        parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
        worker = until(lambda: psutil.Process(parent.pid).children())[0]
        started.append((parent, worker))
        until(lambda: log.exists() and "reached" in log.read_text())
        return parent, worker

    yield run
    for parent, worker in started:
        parent.kill()
        parent.wait()
        if not is_gone(worker):
            worker.kill()


def until(condition):
    """Wait for something true and return it."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up, "it didn't come to it in time"
        time.sleep(0.02)
    return found


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("name", "floor_s"),
    [("late-hanging", 60.0), ("late-hogging", 1.0)],
    ids=["waiting", "holding the interpreter, for which it takes until that counts as hung"],
)
def test_the_engines_process_ends_when_its_parent_is_killed(start, name, floor_s):
    parent, worker = start(name, floor_s)
    parent.kill()
    parent.wait()
    until(lambda: is_gone(worker))


@pytest.mark.parametrize("name", ["late-hanging", "late-hogging"])
def test_ctrl_c_ends_both_at_once(start, name):
    parent, worker = start(name)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(PATIENCE_S) == -signal.SIGINT, "it ends as by Ctrl-C"
    assert is_gone(worker), "the parent saw to that before it ended"
