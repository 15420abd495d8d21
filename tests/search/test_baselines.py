"""The baselines on synthetic hosts; every one must be a point of the space that the tuner itself would search."""

import pytest
from msgspec.structs import replace

from autotune.bench.plan import alike_threads, thread_counts
from autotune.loader import get_fallback_config
from autotune.model import memory
from autotune.records import Core, Gpu, Gpus
from autotune.search.baselines import BASELINES, FALLBACK, applicable, fallback
from autotune.search.space import build_space
from autotune.search.workload import batch_grid, chunk_grid, make_workload
from tests.builders import build_host

GB = 10**9


def host_of(*, threads=8, cores=None, isa=("avx2",), gpus=(), kinds=None):
    """A host with so many threads and cores; GPUs by their compute capability."""
    cores = cores or threads
    kinds = kinds or ["performance"] * cores
    host = build_host()
    devices = tuple(
        Gpu(index, "Synthetic GPU", None, 80 * GB, 80 * GB, capability, mig=False, unusable_reason=None)
        for index, capability in enumerate(gpus)
    )
    return replace(
        host,
        cpu=replace(
            host.cpu, isa=isa, cores=tuple(Core((index,), 0, 0, kind, None) for index, kind in enumerate(kinds))
        ),
        limits=replace(host.limits, usable_threads=threads),
        gpus=Gpus(devices, driver_version="1", absent_reason=None),
    )


@pytest.fixture
def configurations(make_model, room_of):
    """All baselines by name, of a model of 8 layers unless told otherwise."""

    def build(host=None, name="offline", *, model=None, room=None, **options):
        model = model or make_model()
        gpus = dict.fromkeys((host or host_of()).gpus.usable, 80 * GB)
        room = room or room_of({"cpu": 64 * GB, **gpus})
        found = applicable(model, host or host_of(), make_workload(name, model, gpu=bool(gpus), **options), room)
        return {baseline.name: configuration for baseline, configuration in found}

    return build


@pytest.fixture
def large(make_model):
    """A model of 4 layers that takes about 2.7 GB."""
    return make_model(4, hidden=16384, intermediate=32768, vocab=512)


def test_the_fallback_is_what_the_loader_answers(make_model):
    """On this very host, with whatever threads it has."""
    from autotune.host.detect import detect

    model, host = make_model(), detect()
    found, answer = fallback(model, host, make_workload("server", model)), get_fallback_config()
    assert found.decode_threads == found.prefill_threads == answer.cpu_threads
    assert found.batch_size == answer.recommended_batch_size == 1
    assert found.device_layers == {"cpu": 8}
    assert FALLBACK.rule is fallback


@pytest.mark.parametrize(("usable", "threads"), [(1, 1), (3, 3), (4, 4), (64, 4)])
def test_the_fallback_takes_at_most_four_threads(make_model, usable, threads):
    model = make_model()
    assert fallback(model, host_of(threads=usable), make_workload("chat", model)).decode_threads == threads


def test_cores_are_logical_or_physical_and_chunks_the_largest(configurations):
    found = configurations(host_of(threads=16, cores=8), prompt=300)
    assert found["all logical cores"].decode_threads == found["all logical cores"].prefill_threads == 16
    assert found["physical cores"].decode_threads == found["physical cores"].prefill_threads == 8
    for name in ("all logical cores", "physical cores", "fallback"):
        assert found[name].device_layers == {"cpu": 8}
        assert (found[name].batch_size, found[name].prefill_chunk) == (1, 300)


def test_without_a_gpu_there_is_no_gpu_baseline(configurations):
    assert list(configurations()) == ["fallback", "all logical cores", "physical cores", "analytic rule"]


def test_everything_goes_on_the_gpu_with_the_most_memory(configurations, room_of):
    host = host_of(gpus=[(8, 0), (8, 0)])
    found = configurations(host, room=room_of({"cpu": 64 * GB, "cuda:0": 8 * GB, "cuda:1": 9 * GB}))
    assert found["everything on the GPU"].device_layers == {"cuda:1": 8}
    assert found["everything on the GPU"].head_device == "cuda:1"


def test_a_configuration_that_the_memory_cannot_hold_is_not_changed_for_it(configurations, large, room_of):
    """It is up to who compares to say that it doesn't fit."""
    room = room_of({"cpu": 64 * GB, "cuda:0": 10**6})
    found = configurations(host_of(gpus=[(9, 0)]), model=large, room=room)["everything on the GPU"]
    assert found.device_layers == {"cuda:0": 4}
    use = memory.plan(large, found, 2048, room)[1]
    assert use.total_bytes > use.available_bytes


def test_the_analytic_rule_takes_the_gpu_where_it_scores_half_as_much_again(configurations):
    """A card of generation 6 is guessed at 480 GB/s, a core with AVX-512 at 18 GB/s: 320 GB/s is the bar."""
    slow, fast = (host_of(threads=cores, isa=("avx2", "avx512f"), gpus=[(6, 1)]) for cores in (18, 17))
    assert configurations(slow)["analytic rule"].device_layers == {"cpu": 8}
    on_gpu = configurations(fast)["analytic rule"]
    assert (on_gpu.device_layers, on_gpu.head_device) == ({"cuda:0": 8}, "cuda:0")
    assert on_gpu.decode_threads == on_gpu.prefill_threads == 2


@pytest.mark.parametrize(
    ("isa", "threads", "on_gpu"),
    [(("asimd",), 24, True), (("asimd",), 25, False), (("avx2",), 22, True), (("avx2",), 23, False), ((), 32, True)],
)
def test_the_score_of_a_core_depends_on_its_widest_instructions(configurations, isa, threads, on_gpu):
    """With 320 GB/s as the bar: 13 GB/s a core with NEON, 14 with AVX2, 10 without either."""
    found = configurations(host_of(threads=threads, isa=isa, gpus=[(6, 1)]))["analytic rule"]
    assert ("cuda:0" in found.device_layers) == on_gpu


@pytest.mark.parametrize(("capability", "threads"), [(None, 32), ((5, 2), 32), ((7, 5), 41), ((12, 0), 533)])
def test_an_unknown_generation_counts_as_the_nearest_older_one(configurations, capability, threads):
    """The most cores of 10 GB/s that a GPU beats by half: one more, and the CPU is chosen."""
    for count, device in ((threads, "cuda:0"), (threads + 1, "cpu")):
        host = host_of(threads=count, isa=(), gpus=[capability])
        assert configurations(host)["analytic rule"].device_layers == {device: 8}


def test_a_gpu_that_the_host_no_longer_lists_still_has_a_score(configurations, room_of):
    """It was timed, so it can be decided about; its generation is unknown."""
    found = configurations(host_of(isa=()), room=room_of({"cpu": GB, "cuda:0": GB}))["analytic rule"]
    assert found.device_layers == {"cuda:0": 8}


def test_a_model_over_two_gigabytes_that_does_not_fit_fills_the_gpu(configurations, large, room_of):
    """Half of the threads, the head on the CPU; one layer more would not fit."""
    room = room_of({"cpu": 64 * GB, "cuda:0": 2 * GB})
    host = host_of(threads=8, gpus=[(9, 0)])
    found = configurations(host, model=large, room=room)["analytic rule"]
    count = found.device_layers["cuda:0"]
    assert found.device_layers == {"cpu": 4 - count, "cuda:0": count}
    assert 1 <= count < 4
    assert (found.head_device, found.decode_threads) == ("cpu", 4)
    fits = [
        memory.plan(large, replace(found, device_layers={"cpu": 4 - more, "cuda:0": more}, batch_size=1), 2048, room)[1]
        for more in (count, count + 1)
    ]
    assert [use.total_bytes <= use.available_bytes for use in fits] == [True, False]


def test_a_large_model_on_a_gpu_that_holds_no_layer_stays_on_the_cpu(configurations, large, room_of):
    room = room_of({"cpu": 64 * GB, "cuda:0": 10**7})
    found = configurations(host_of(gpus=[(9, 0)]), model=large, room=room)["analytic rule"]
    assert (found.device_layers, found.decode_threads) == ({"cpu": 4}, 8)


def test_a_slow_gpu_that_holds_a_large_model_is_filled_but_for_the_head(configurations, large):
    found = configurations(host_of(threads=64, isa=("avx512f",), gpus=[(6, 0)]), model=large)["analytic rule"]
    assert (found.device_layers, found.head_device) == ({"cuda:0": 4}, "cpu")


def test_a_small_model_that_does_not_fit_the_gpu_stays_on_the_cpu(configurations, room_of):
    found = configurations(host_of(gpus=[(9, 0)]), room=room_of({"cpu": GB, "cuda:0": 10**6}))["analytic rule"]
    assert found.device_layers == {"cpu": 8}


@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (2, 2), (8, 4), (16, 8)])
def test_the_analytic_rules_batch_goes_by_a_tier_of_guesses(configurations, threads, batch):
    """10 GB/s a core: 10 is Low, 20 Medium, 80 High, 160 just High; with AVX2 16 cores are Extreme."""
    isa = ("avx2",) if threads == 16 else ()
    assert configurations(host_of(threads=threads, isa=isa))["analytic rule"].batch_size == batch


def test_the_analytic_rules_batch_is_capped_by_memory_and_workload(configurations, make_model, needs, room_of):
    model, host = make_model(), host_of(threads=64)
    assert configurations(host)["analytic rule"].batch_size == 8
    assert configurations(host, "chat")["analytic rule"].batch_size == 1
    assert configurations(host, max_batch=6)["analytic rule"].batch_size == 6
    assert configurations(host, max_batch=5)["analytic rule"].batch_size == 5
    sizes = {batch: needs(model, {"cpu": 8}, batch=batch, chunk=512, context=2048)["cpu"] for batch in (1, 2, 4)}
    # The tier counts what the memory holds, so the host is given a GPU's worth of it elsewhere.
    for batch in (2, 4):
        room = room_of({"cpu": sizes[batch] + 10**6, "cuda:0": 3 * GB})
        found = configurations(host_of(threads=64, isa=("avx512f",), gpus=[(6, 0)]), room=room)["analytic rule"]
        assert (found.device_layers, found.batch_size) == ({"cpu": 8}, batch)


@pytest.mark.parametrize("name", ["chat", "server", "offline"])
@pytest.mark.parametrize(
    "host",
    [
        host_of(threads=1),
        host_of(threads=24, kinds=["performance"] * 8 + ["efficiency"] * 16, cores=24),
        host_of(threads=28, cores=14, kinds=["performance"] * 6 + ["efficiency"] * 8),
        host_of(threads=12, gpus=[(8, 6)]),
        host_of(threads=96, cores=48, isa=("avx512f",), gpus=[(9, 0)] * 3),
    ],
)
def test_every_baseline_is_a_point_of_the_space(configurations, make_model, make_costs, name, host):
    """Of the space over the thread counts that are timed on the host and those below that have a core each."""
    model = make_model()
    devices = ("cpu", *host.gpus.usable)
    counts = sorted({*range(1, alike_threads(host) + 1), *thread_counts(host), min(4, host.limits.usable_threads)})
    workload = make_workload(name, model, gpu=len(devices) > 1)
    costs = make_costs(
        devices=devices,
        threads=counts,
        batches=batch_grid(workload.max_batch),
        chunks=chunk_grid(workload.prompt_tokens),
    )
    space = build_space(costs, workload, dict.fromkeys(devices, 80 * GB))
    found = configurations(host, name)
    assert len(found) == len(BASELINES) - (len(devices) == 1)
    for configuration in found.values():
        assert space.configuration(space.point(configuration)) == configuration
