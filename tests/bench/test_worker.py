"""What a worker does with its time; all else of it is seen through campaigns, as processes."""

from __future__ import annotations

import random
import time

from autotune.bench.messages import Block, Failed, Job, Prepared
from autotune.bench.rig import Subject
from autotune.bench.sampler import MIN_SAMPLES, TARGET_INTERVAL
from autotune.bench.worker import Bench

TASKS = 5
BUILD_S = 0.1


class SlowRig:
    """A rig whose calls take long to build, as graphs of many launches do; all of them are right."""

    def __init__(self, build_s=BUILD_S):
        self.build_s = build_s
        self.checked = []
        self.built = []

    def check(self, tasks, skip):
        self.checked += [task for index, task in enumerate(tasks) if index not in skip]
        return set()

    def prepare(self):
        return Prepared(0)

    def build(self, task):
        time.sleep(self.build_s)
        self.built.append(task)
        return Subject(lambda: None)

    def between_blocks(self):
        pass


class NoisyRig(SlowRig):
    """A rig on which a sample takes up to twice as long as another, by its own clock."""

    def build(self, task):
        chance = random.Random(0)
        return Subject(lambda: None, stopwatch=lambda call, calls: calls * chance.uniform(0.01, 0.02))


def job_of(tasks, seconds):
    deadline = time.monotonic() + seconds
    return Job(
        model=None,
        tasks=tuple(tasks),
        samples_s=((),) * len(tasks),
        skip=(),
        cpus=(0,),
        cold_bytes=0,
        least_cold_bytes=0,
        deadline=deadline,
        end=deadline,
        kernel_modules=(),
        seed=0,
    )


def test_calls_are_built_as_long_as_that_leaves_time_to_make_them(product):
    """The most important ones first; those that it doesn't come to are nobody's failure."""
    rig, events = SlowRig(), []
    tasks = [product(m=m) for m in range(1, TASKS + 1)]
    bench = Bench(job_of(tasks, TASKS / 2 * BUILD_S), rig, events.append)
    bench.time(dict.fromkeys(range(TASKS), TARGET_INTERVAL))
    assert 1 <= len(rig.built) < TASKS
    assert rig.built == tasks[: len(rig.built)]
    assert not [event for event in events if isinstance(event, Failed)]


def test_only_what_is_selected_is_checked_built_and_sampled_and_each_once(product):
    rig, events = SlowRig(build_s=0), []
    tasks = [product(m=m) for m in range(1, TASKS + 1)]
    bench = Bench(job_of(tasks, 60), rig, events.append)
    bench.time({3: TARGET_INTERVAL, 0: TARGET_INTERVAL})
    assert rig.built == [tasks[3], tasks[0]], "in order of importance"
    assert sampled(events) == {3, 0}
    bench.time({1: TARGET_INTERVAL, 0: TARGET_INTERVAL})
    assert rig.built == [tasks[3], tasks[0], tasks[1]]
    assert len(rig.checked) == 3
    assert sampled(events) == {3, 0, 1}
    assert len([event for event in events if isinstance(event, Prepared)]) == 1


def test_what_was_sampled_coarsely_is_sampled_on_when_it_is_asked_for_again(product):
    rig, events = NoisyRig(build_s=0), []
    bench = Bench(job_of([product()], 60), rig, events.append)
    # The first goal is one that any samples reach, the second one that these don't.
    bench.time({0: 1e9})
    coarse = len(samples(events))
    assert coarse == MIN_SAMPLES
    bench.time({0: 1e-9})
    assert len(samples(events)) > coarse


def samples(events):
    return [sample for event in events if isinstance(event, Block) for sample in event.samples]


def sampled(events):
    return {sample.index for sample in samples(events)}
