"""What a worker does with its time; all else of it is seen through campaigns, as processes."""

from __future__ import annotations

import time

from autotune.bench.messages import Failed, Job, Prepared
from autotune.bench.rig import Subject
from autotune.bench.worker import _sample

TASKS = 5
BUILD_S = 0.1


class SlowRig:
    """A rig whose calls take long to build, as graphs of many launches do."""

    def __init__(self):
        self.built = []

    def prepare(self):
        return Prepared(0)

    def build(self, task):
        time.sleep(BUILD_S)
        self.built.append(task)
        return Subject(lambda: None)

    def between_blocks(self):
        pass


def test_calls_are_built_as_long_as_that_leaves_time_to_make_them(product):
    """The most important ones first; those that it doesn't come to are nobody's failure."""
    rig, events = SlowRig(), []
    deadline = time.monotonic() + TASKS / 2 * BUILD_S
    tasks = tuple(product(m=m) for m in range(1, TASKS + 1))
    job = Job(
        model=None,
        tasks=tasks,
        samples_s=((),) * TASKS,
        skip=(),
        cpus=(0,),
        cold_bytes=0,
        least_cold_bytes=0,
        deadline=deadline,
        end=deadline,
        kernel_modules=(),
        seed=0,
    )
    _sample(job, rig, set(), events.append)
    assert 1 <= len(rig.built) < TASKS
    assert tuple(rig.built) == tasks[: len(rig.built)]
    assert not [event for event in events if isinstance(event, Failed)]
