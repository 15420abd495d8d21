"""What is to be timed, and in which order."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from autotune.bench.plan import SLICE_BYTES, Task, ceilings, describe_first_missing, plan, thread_counts
from autotune.bench.rivals import Kernels, choose_kernels, gates
from autotune.records import Core, Kernel, Layer, Site
from ternary_kernels.formats import get_format
from tests.builders import NUMPY, build_host, build_model, build_workload

TINY = {"prompt_tokens": 1, "output_tokens": 1, "context_tokens": 2, "max_batch": 1}


def host_with(cores, siblings=1, usable=None):
    """A synthetic host."""
    host = build_host()
    held = tuple(
        Core(tuple(core * siblings + turn for turn in range(siblings)), 0, 0, None, None) for core in range(cores)
    )
    return msgspec.structs.replace(
        host,
        cpu=msgspec.structs.replace(host.cpu, cores=held),
        limits=msgspec.structs.replace(host.limits, usable_threads=usable or cores * siblings),
    )


def products(tasks):
    return [task for task in tasks if task.point.op == "matmul"]


def shape(point):
    return point.format, point.n_out, point.k_in


@pytest.mark.parametrize(
    ("cores", "siblings", "usable", "counts"),
    [
        (1, 1, 1, (1,)),
        (2, 1, 2, (1, 2)),
        (3, 1, 3, (1, 2, 3)),
        (6, 2, 12, (1, 2, 4, 6, 8, 12)),
        (6, 2, 5, (1, 2, 4, 5)),
        (0, 1, 6, (1, 2, 4, 6)),
        (64, 2, 128, (1, 2, 4, 8, 16, 32, 64, 128)),
    ],
)
def test_thread_counts_are_powers_of_two_all_cores_and_all_threads(cores, siblings, usable, counts):
    """An unknown topology has no cores; a quota leaves fewer threads than there are cores."""
    assert thread_counts(host_with(cores, siblings, usable)) == counts


def test_ceilings_are_read_and_peak_at_each_thread_count():
    found = {(task.point.op, task.point.threads) for task in ceilings(host_with(6, 2), NUMPY)}
    assert found == set(itertools.product(("read", "peak"), (1, 2, 4, 6, 8, 12)))


def test_the_peak_is_that_of_tiles_too_where_there_are_any():
    """A product on tiles is faster than the peak of the vector units."""
    able = [Kernel(name, "I2_S", name, None) for name in ("native", "amx", "numpy")]
    tasks = ceilings(host_with(1, 1), choose_kernels(able, ("I2_S",), None))
    assert [(task.point.op, task.point.kernel) for task in tasks] == [
        ("read", "native"),
        ("peak", "native"),
        ("peak", "amx"),
    ]
    for forced in ("native", "numpy"):
        tasks = ceilings(host_with(1, 1), choose_kernels(able, ("I2_S",), forced))
        assert {task.point.kernel for task in tasks} == {forced}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [
        {},
        {"max_batch": 48, "prompt_tokens": 512},
        {"max_batch": 4096, "prompt_tokens": 512, "output_tokens": 64},
        {"max_batch": 1, "prompt_tokens": 7, "output_tokens": 1},
        {"max_batch": 2, "prompt_tokens": 1},
        {"max_batch": 600, "prompt_tokens": 3000, "output_tokens": 1000},
        TINY,
    ],
)
class TestPlan:
    """For any workload."""

    def test_every_product_is_timed_with_each_thread_count_at_one_token_and_at_the_most(self, lengths, quick):
        workload = build_workload(**lengths)
        model, host = build_model(), host_with(3)
        chunk = min(workload.prompt_tokens, 512)
        sites = {site for layer in model.layers for site in layer.sites}
        needed = {
            (site.format, site.n_out, site.k_in, m) for site in sites for m in (1, max(chunk, workload.max_batch))
        }
        needed |= {(*shape(model.head), m) for m in (1, workload.max_batch)}
        timed = {
            (*shape(task.point), task.point.m, task.point.threads) for task in products(self.tasks(lengths, quick))
        }
        assert {(*product, threads) for product in needed for threads in thread_counts(host)} <= timed

    def test_the_head_is_not_timed_beyond_the_batch_nor_attention_beyond_the_prompt(self, lengths, quick):
        workload, model = build_workload(**lengths), build_model()
        for task in self.tasks(lengths, quick):
            point = task.point
            if shape(point) == shape(model.head):
                assert point.m <= workload.max_batch
            if point.op == "attention":
                assert point.m <= min(workload.prompt_tokens, 512)
                assert point.m + point.context <= model.max_context

    def test_attention_is_timed_at_decode_and_at_the_largest_chunk(self, lengths, quick):
        workload = build_workload(**lengths)
        tokens = {task.point.m for task in self.tasks(lengths, quick) if task.point.op == "attention"}
        assert {1, min(workload.prompt_tokens, 512)} <= tokens

    def test_small_operations_are_timed_at_every_m_of_the_layers(self, lengths, quick):
        tasks, model = self.tasks(lengths, quick), build_model()
        of_layers = {task.point.m for task in products(tasks) if shape(task.point) != shape(model.head)}
        assert {task.point.m for task in tasks if task.point.op == "layer_ops"} == of_layers

    def test_the_order_is_ceilings_then_one_token_then_the_rest(self, lengths, quick):
        def stage(task):
            point = task.point
            if point.op in ("read", "peak"):
                return 0
            if point.op == "matmul":
                return 1 if point.m == 1 else 3
            return 2

        stages = [stage(task) for task in self.tasks(lengths, quick)]
        assert stages == sorted(stages)
        assert {0, 1, 2} <= set(stages)

    def test_no_point_is_timed_twice(self, lengths, quick):
        tasks = self.tasks(lengths, quick)
        assert len({task.point for task in tasks}) == len(tasks)

    def tasks(self, lengths, quick):
        return plan((build_model(),), host_with(3), build_workload(**lengths), NUMPY, quick=quick)


def test_quick_times_fewer_values_of_m():
    workload = build_workload(prompt_tokens=512, max_batch=32)
    quick, full = (plan((build_model(),), host_with(2), workload, NUMPY, quick=quick) for quick in (True, False))
    assert {task.point for task in quick} < {task.point for task in full}


def test_layers_of_the_same_shapes_are_timed_once():
    model = build_model()
    deep = msgspec.structs.replace(model, layers=model.layers * 60)
    host, workload = host_with(2), build_workload()
    assert plan((deep,), host, workload, NUMPY, quick=False) == plan((model,), host, workload, NUMPY, quick=False)


def test_a_head_with_the_shape_of_another_site_is_timed_as_one_with_it():
    site = Site("down", 512, 256, "F16")
    model = build_model(layers=(Layer((site,)),), head=Site("head", 512, 256, "F16"))
    workload = build_workload(prompt_tokens=128, max_batch=8)
    tasks = plan((model,), host_with(1), workload, NUMPY, quick=False)
    assert [task.point.m for task in products(tasks)] == [1, 16, 128, 64, 4, 2, 8, 32]


def test_of_a_head_too_large_to_time_whole_a_slice_of_rows_is_timed():
    model = build_model(head=Site("head", 128_256, 2560, "F16"))
    head = [task for task in plan((model,), host_with(1), build_workload(), NUMPY, quick=True) if task.rows]
    assert {shape(task.point) for task in head} == {("F16", 128_256, 2560)}
    for task in head:
        size_bytes = get_format("F16").size_bytes(task.rows, 2560)
        assert 0.5 * SLICE_BYTES < size_bytes <= SLICE_BYTES


@pytest.mark.parametrize("max_context", [1, 2, 64])
def test_a_tiny_model_has_a_plan_within_its_context(max_context):
    model = build_model(max_context=max_context)
    tasks = plan((model,), host_with(2), build_workload(**TINY), NUMPY, quick=False)
    attention = [task.point for task in tasks if task.point.op == "attention"]
    assert {point.m for point in attention} == {1}
    assert {point.context for point in attention} <= set(range(max_context))
    assert max(point.context for point in attention) == max_context - 1


def test_a_long_prompt_has_chunks_timed_on_a_context_as_long():
    workload = build_workload(prompt_tokens=3000, output_tokens=500, context_tokens=3500)
    tasks = plan((build_model(),), host_with(1), workload, NUMPY, quick=True)
    contexts = {task.point.context for task in tasks if task.point.op == "attention" and task.point.m == 512}
    assert contexts == {0, 1024, 3500}


class TestFirstMissing:
    """What a decision can't do without."""

    def tasks(self):
        return plan((build_model(),), host_with(2), build_workload(), NUMPY, quick=True)

    def test_nothing_is_missing_when_all_is_there(self):
        tasks = self.tasks()
        assert describe_first_missing(tasks, (task.point for task in tasks)) is None

    def test_one_thread_count_is_enough_and_more_than_one_token_is_not_needed(self):
        tasks = self.tasks()
        timed = [task.point for task in tasks if task.point.threads == 2 and task.point.m in (0, 1, 384)]
        assert describe_first_missing(tasks, timed) is None

    @pytest.mark.parametrize("op", ["read", "peak"])
    def test_a_ceiling_that_was_not_timed_is_named(self, op):
        tasks = self.tasks()
        assert describe_first_missing(tasks, (task.point for task in tasks if task.point.op != op)) == op

    def test_a_product_that_was_not_timed_at_one_token_is_named_with_its_shape(self):
        tasks = self.tasks()
        timed = [task.point for task in tasks if shape(task.point) != ("I2_S", 768, 256) or task.point.m > 1]
        assert describe_first_missing(tasks, timed) == "matmul I2_S 768 x 256"

    def test_with_nothing_timed_the_first_task_is_named(self):
        assert describe_first_missing(self.tasks(), []) == "read"


def test_tasks_survive_the_way_to_the_worker():
    tasks = plan((build_model(),), host_with(2), build_workload(), NUMPY, quick=True)
    assert msgspec.json.decode(msgspec.json.encode(tasks), type=tuple[Task, ...]) == tasks


class TestRivals:
    """A host with three kernels for I2_S, two for F16."""

    KERNELS = Kernels({"I2_S": ("native", "amx", "numpy"), "F16": ("native", "numpy")}, main="native")

    def tasks(self, models=None, **options):
        workload = build_workload(prompt_tokens=512, max_batch=32)
        return plan(models or (build_model(),), host_with(2), workload, self.KERNELS, quick=False, **options)

    def test_the_native_kernel_is_timed_throughout_and_tiles_from_16_tokens(self):
        tokens = {
            kernel: {task.point.m for task in products(self.tasks()) if task.point.kernel == kernel}
            for kernel in ("native", "amx")
        }
        assert tokens["native"] == {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}
        assert tokens["amx"] == {16, 32, 64, 128, 256, 512}

    def test_the_reference_comes_last_and_first_where_it_may_be_beaten(self):
        tasks = products(self.tasks())
        last = [task.point for task in tasks if task.point.kernel == "numpy"]
        assert [task.point for task in tasks[-len(last) :]] == last
        spared_by = gates([task.point for task in tasks])
        compared = [task.point for index, task in enumerate(tasks) if index in {i for each in spared_by for i in each}]
        assert last[: len(compared)] == compared
        assert {(point.m, point.threads) for point in compared if point.format == "I2_S"} == {(1, 2), (64, 2)}
        assert {(point.m, point.threads) for point in compared if point.format == "F16"} == {(1, 2), (32, 2)}

    def test_all_else_is_timed_with_the_main_kernel(self):
        assert {task.point.kernel for task in self.tasks() if task.point.op != "matmul"} == {"native"}

    def test_in_several_formats_what_they_share_is_timed_once_and_each_step_goes_through_all(self):
        model = build_model()
        sites = tuple(msgspec.structs.replace(site, format="F16") for site in model.layers[0].sites)
        other = msgspec.structs.replace(model, layers=(Layer(sites),) * 2)
        one, both = self.tasks(), self.tasks((model, other))
        assert {task.point for task in one} < {task.point for task in both}
        assert len({task.point for task in both}) == len(both)
        order = list(dict.fromkeys((task.point.m, task.point.format) for task in products(both)))
        assert order[:4] == [(1, "I2_S"), (1, "F16"), (16, "I2_S"), (16, "F16")]
