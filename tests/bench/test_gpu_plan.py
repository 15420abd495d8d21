"""What is to be timed on GPUs, and in which order. Hosts and GPUs are synthetic."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.bench.cold_memory import window_bytes
from autotune.bench.gpu_plan import plan_gpus
from autotune.bench.plan import describe_first_missing
from autotune.bench.rivals import choose_kernels, gates
from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Attention, Gpu, Gpus, Kernel, Layer, Site
from tests.builders import build_host, build_model, build_workload

GIB = 1 << 30
NO_TORCH = "torch isn't installed (the extra gpu): pip install torch"
FORMATS = ("I2_S", "I2_S_ARM", "F16")
ABLE = tuple(Kernel(name, held, "sm_90", None, "gpu") for name in ("triton", "torch") for held in FORMATS)
ON_CPU = tuple(Kernel("numpy", name, None, None) for name in (*FORMATS, "TL2"))


def gpu(index=0, *, name="Synthetic GPU", total=80, free=78, capability=(9, 0), mig=False, reason=None):
    """Sizes in GiB."""
    total_bytes = None if total is None else total * GIB
    return Gpu(index, name, f"GPU-{index}", total_bytes, free and free * GIB, capability, mig, reason)


def plan(*gpus, models=None, workload=None, kernels=ABLE, forced=None):
    host = replace(build_host(), gpus=Gpus(gpus or (gpu(),), "999.0", None))
    chosen = choose_kernels((*ON_CPU, *kernels), ("I2_S", "F16"), forced)
    workload = workload or build_workload(prompt_tokens=512, max_batch=256)
    return plan_gpus(models or (build_model(),), host, workload, chosen)


def points(planned, op=None):
    return [task.point for task in planned.tasks if op in (None, task.point.op)]


def test_a_host_without_gpus_has_nothing_to_time_on_them():
    host = build_host()
    assert plan_gpus((build_model(),), host, build_workload(), choose_kernels(ON_CPU, ("I2_S",), None)) == ()


class TestKinds:
    """Which GPUs count as one."""

    def test_identical_gpus_are_timed_once_on_the_one_with_the_most_free_memory(self):
        planned = plan(gpu(0, free=20), gpu(1, free=78), gpu(2, free=77))
        assert [tasks.devices for tasks in planned] == [("cuda:1", "cuda:2", "cuda:0")]
        assert planned[0].gpu.index == 1
        assert {point.device for point in points(planned[0])} == {"cuda:1"}

    @pytest.mark.parametrize("differs", [{"name": "Other"}, {"total": 40}, {"capability": (8, 0)}, {"mig": True}])
    def test_gpus_that_differ_are_timed_each(self, differs):
        planned = plan(gpu(0, free=20), gpu(1, free=20, **differs))
        assert [tasks.devices for tasks in planned] == [("cuda:0",), ("cuda:1",)]

    def test_one_that_cannot_be_used_has_no_name_and_no_plan(self):
        planned = plan(gpu(0, reason="GPU is lost"), gpu(1))
        assert [(tasks.devices, tasks.gpu.index) for tasks in planned] == [(("cuda:0",), 1)]

    def test_memory_that_is_not_told_counts_as_free(self):
        assert plan(gpu(0, free=None), gpu(1, free=78))[0].devices == ("cuda:0", "cuda:1")


class TestPoints:
    """What is timed on a large GPU."""

    def test_sites_are_timed_as_the_gpu_fuses_them_at_every_m_of_batches_and_chunks(self):
        (planned,) = plan()
        wanted = {(site.format, site.n_out, site.k_in) for site in fused(build_model().layers[0])}
        head = ("F16", 1000, 256)
        found = {}
        for point in points(planned, "matmul"):
            if (point.kernel, point.launch) == ("triton", "graph"):
                found.setdefault((point.format, point.n_out, point.k_in), set()).add(point.m)
        assert set(found) == wanted | {head}
        assert len(wanted) < len(build_model().layers[0].sites)
        powers = {1 << power for power in range(10)}
        assert all(found[shape] == powers for shape in wanted)
        assert found[head] == powers - {512}, "of a prompt only the last token goes through the head"

    def test_work_is_replayed_from_graphs_and_launched_eagerly_for_comparison_at_one_token_and_the_most(self):
        (planned,) = plan()
        eager = [point for point in points(planned) if point.launch == "eager"]
        assert {(point.op, point.kernel, point.m) for point in eager} == {("matmul", "triton", m) for m in (1, 512)}
        transfers = {"upload", "download", "handover"}
        assert {point.launch for point in points(planned) if point.op in transfers} == {None}
        assert all(point.launch for point in points(planned) if point.op not in transfers)

    def test_decoding_is_timed_for_many_sequences_at_once_and_a_prompt_alone(self):
        (planned,) = plan()
        decode = {(p.sequences, p.context) for p in points(planned, "attention") if p.m == 1}
        assert {count for count, _ in decode} == {1, 4, 16, 64, 256}
        assert {1024, 128} <= {context for _, context in decode}
        assert {p.sequences for p in points(planned, "attention") if p.m > 1} == {1}
        assert {p.m for p in points(planned, "attention")} >= {1, 512}

    @pytest.mark.parametrize(("max_batch", "sequences"), [(1, {1}), (4, {1, 4}), (100, {1, 4, 16, 64, 100})])
    def test_the_largest_batch_is_always_among_the_sequences(self, max_batch, sequences):
        (planned,) = plan(workload=build_workload(max_batch=max_batch))
        assert {p.sequences for p in points(planned, "attention") if p.m == 1} == sequences

    def test_small_operations_are_timed_with_every_kernel_at_every_m(self):
        (planned,) = plan()
        found = {(point.kernel, point.m) for point in points(planned, "layer_ops")}
        assert found == {(kernel, 1 << power) for kernel in ("triton", "torch") for power in range(10)}

    def test_what_crosses_a_split_is_timed_from_a_tokens_id_to_the_activations_of_a_chunk(self):
        (planned,) = plan()
        sizes = {8, *(m * 256 * 4 for m in (1, 16, 64, 512))}
        assert {(p.kernel, p.k_in) for p in points(planned, "handover")} == {("pinned", size) for size in sizes}
        for op in ("upload", "download"):
            wanted = {(memory, size) for memory in ("pinned", "pageable") for size in sizes}
            assert {(p.kernel, p.k_in) for p in points(planned, op)} == wanted

    @pytest.mark.parametrize(("capability", "arithmetic"), [((9, 0), "I8"), (None, "I8"), ((7, 0), "F16")])
    def test_the_peak_is_that_of_the_fastest_tensor_cores(self, capability, arithmetic):
        (planned,) = plan(gpu(capability=capability))
        (peak,) = points(planned, "peak")
        assert (peak.format, peak.threads) == (arithmetic, 1)
        assert 2 * peak.m * peak.n_out * peak.k_in > 1e11

    def test_no_point_is_timed_twice(self):
        (planned,) = plan()
        assert len(set(points(planned))) == len(planned.tasks)

    def test_the_order_is_that_in_which_a_decision_needs_them(self):
        def stage(point):
            if point.launch == "eager" or (point.op, point.kernel) == ("matmul", "torch"):
                return 7
            if point.op == "matmul":
                return 1 if point.m == 1 else 5
            order = {"read": 0, "peak": 0, "handover": 2, "attention": 3, "layer_ops": 4, "upload": 6, "download": 6}
            return order[point.op]

        (planned,) = plan()
        stages = [stage(point) for point in points(planned)]
        assert stages == sorted(stages)
        assert set(stages) == set(range(8))


class TestFormats:
    """A GPU holds some formats as others."""

    TL2 = build_model(layers=(Layer((Site("up", 768, 256, "TL2"),)),))

    def test_what_has_no_kernel_is_timed_as_it_is_held(self):
        (planned,) = plan(models=(self.TL2,))
        assert {point.format for point in points(planned, "matmul")} == {"I2_S", "F16"}

    def test_models_that_are_held_alike_are_timed_once(self):
        i2_s = on_gpu(self.TL2)
        assert plan(models=(self.TL2, i2_s)) == plan(models=(i2_s,))


class TestMemory:
    """What one call reads stays a small part of the GPU's memory."""

    LARGE = build_model(
        head=Site("head", 128_256, 4096, "F16"), attention=Attention(heads=32, kv_heads=8, head_dim=128)
    )

    @pytest.mark.parametrize(("total", "limit"), [(80, 2 * GIB), (24, 3 * GIB // 2), (8, GIB // 2), (None, 64 << 20)])
    def test_sites_are_sliced_and_the_longest_caches_left_out(self, total, limit):
        (planned,) = plan(gpu(total=total), models=(self.LARGE,))
        windows = [window_bytes(task) for task in planned.tasks]
        assert 0.5 * limit < max(windows) <= limit
        head = [task for task in planned.tasks if task.point.n_out == 128_256]
        assert {task.rows is None for task in head} == {limit > GIB}
        assert {p.sequences for p in points(planned, "attention") if p.m == 1} >= {1, 4, 16}

    def test_the_plan_does_not_depend_on_what_is_free(self):
        assert plan(gpu(free=78))[0].tasks == plan(gpu(free=1))[0].tasks


class TestKernels:
    """What can run, and what is asked for."""

    def test_torch_is_the_reference_and_gated_like_numpy(self):
        (planned,) = plan()
        found = points(planned)
        spared_by = gates(found)
        gated = {found[index].kernel for index, spares in enumerate(spared_by) if spares}
        assert gated == {"torch"}
        compared = {(found[i].m, found[i].launch) for spares in spared_by for i in spares}
        assert compared == {(1, "graph"), (64, "graph")}

    def test_without_triton_torch_is_timed_throughout(self):
        alone = tuple(replace(kernel, reason="no") if kernel.kernel == "triton" else kernel for kernel in ABLE)
        (planned,) = plan(kernels=alone)
        assert {point.kernel for point in points(planned, "matmul")} == {"torch"}
        assert {point.m for point in points(planned, "matmul") if point.launch == "eager"} == {1, 512}
        assert not any(gates(points(planned)))

    def test_a_gpu_too_old_for_triton_beside_a_newer_one_is_timed_with_torch(self):
        new, old = plan(gpu(0), gpu(1, name="Old", capability=(7, 0)))
        assert {point.kernel for point in points(new, "matmul")} == {"triton", "torch"}
        assert {point.kernel for point in points(old, "matmul")} == {"torch"}

    @pytest.mark.parametrize("forced", ["triton", "torch"])
    def test_a_kernel_that_is_asked_for_is_alone(self, forced):
        (planned,) = plan(forced=forced)
        assert {point.kernel for point in points(planned, "matmul")} == {forced}

    def test_a_kernel_of_the_cpus_that_is_asked_for_changes_nothing_on_gpus(self):
        assert plan(forced="numpy") == plan()

    def test_without_torch_the_plan_says_how_to_get_it(self):
        missing = tuple(replace(kernel, path=None, reason=NO_TORCH) for kernel in ABLE)
        (planned,) = plan(kernels=missing)
        assert (planned.tasks, planned.failure) == ((), NO_TORCH)

    def test_a_host_of_whose_gpus_no_kernel_is_known_says_so(self):
        (planned,) = plan(kernels=())
        assert planned.failure == "there is no GPU kernel for I2_S"


class TestFirstMissing:
    """What a decision about a GPU can't do without."""

    def missing(self, keep):
        (planned,) = plan()
        return describe_first_missing(planned.tasks, [point for point in points(planned) if keep(point)])

    def test_ceilings_sites_at_one_token_and_a_handover_are_enough(self):
        needed = ("read", "peak", "handover")
        assert self.missing(lambda point: point.op in needed or (point.m, point.launch) == (1, "graph")) is None

    @pytest.mark.parametrize("op", ["read", "peak", "handover"])
    def test_each_of_them_is_named(self, op):
        assert self.missing(lambda point: point.op != op) == op

    def test_eager_times_do_not_stand_for_graphs(self):
        assert self.missing(lambda p: p.launch != "graph" or p.op != "matmul").startswith("matmul ")

    def test_what_was_timed_on_the_cpu_does_not_count(self):
        (planned,) = plan()
        on_cpu = [replace(point, device="cpu") for point in points(planned)]
        assert describe_first_missing(planned.tasks, on_cpu) == "read"
