"""Nothing of a campaign stays behind: not when its process is killed, and not on Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from autotune.bench.messages import Finished, Idle, Job, Ready, Select, encoder, event_decoder

PATIENCE_S = 10
CAMPAIGN = """
    from autotune.bench import campaign
    from autotune.bench.plan import Task
    from autotune.host.detect import detect
    from autotune.records import Point
    from tests.builders import build_model

    task = Task(Point("matmul", "cpu", "{kernel}", 1, 1, "I2_S", 256, 256))
    print("started", flush=True)
    campaign.run(
        build_model(), detect(), [task], budget_s={budget_s},
        kernel_modules=("ternary_kernels.reference.products", "tests.bench.faulty_kernels"),
    )
"""


@pytest.fixture
def start(tmp_path):
    """Starts a campaign in a process of its own, and returns it with its worker, which hangs in a kernel."""
    started = []

    def run(kernel, budget_s=60.0):
        script = textwrap.dedent(CAMPAIGN.format(kernel=kernel, budget_s=budget_s))
        reached = tmp_path / "reached"
        environment = {**importing_as_here(), "REACHED": str(reached)}
        parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
        worker = until(lambda: psutil.Process(parent.pid).children())[0]
        started.append((parent, worker))
        until(reached.exists)
        return parent, worker

    yield run
    for parent, worker in started:
        parent.kill()
        parent.wait()
        if not is_gone(worker):
            worker.kill()


def importing_as_here():
    """The environment for a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}


def until(condition):
    """Wait for something true and return it."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < give_up, "it didn't come to it in time"
        time.sleep(0.02)
    return found


def send(worker, *messages):
    worker.stdin.writelines(encoder.encode(message) + b"\n" for message in messages)
    worker.stdin.flush()


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("kernel", "budget_s"),
    [("late-hanging", 60.0), ("late-hogging", 3.0)],
    ids=["waiting", "holding the interpreter, for which it takes until the end of the budget"],
)
def test_the_worker_ends_when_its_parent_is_killed(start, kernel, budget_s):
    parent, worker = start(kernel, budget_s)
    parent.kill()
    parent.wait()
    until(lambda: is_gone(worker))


@pytest.mark.parametrize("kernel", ["late-hanging", "late-hogging"])
def test_ctrl_c_ends_both_at_once(start, kernel):
    parent, worker = start(kernel)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(PATIENCE_S) == -signal.SIGINT, "it ends as by Ctrl-C"
    assert is_gone(worker), "the parent saw to that before it ended"


def test_a_worker_that_is_done_exits_cleanly_while_its_parent_still_listens(host, product):
    """A thread that waits for the end of standard input must not keep the interpreter from ending."""
    deadline = time.monotonic() + 60
    cpus = (min(host.limits.affinity_cpus),)
    job = Job(None, (product(),), ((),), (), cpus, 64 << 20, 64 << 20, deadline, deadline, (), 0)
    command = [sys.executable, "-m", "autotune.bench.worker"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=importing_as_here(), **pipes) as worker:
        send(worker, job, Select({0: 0.02}))
        events = []
        for line in worker.stdout:
            events.append(event_decoder.decode(line))
            if isinstance(events[-1], Idle):
                send(worker, Select({}))
        assert worker.wait() == 0
        assert worker.stderr.read() == b""
    assert isinstance(events[0], Ready)
    assert events[-1] == Finished()
