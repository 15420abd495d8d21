"""Recorded hosts, real and synthetic: the pipeline runs on them without the hardware and decides what is right.

What a synthetic host should get is derived from its laws by hand, see the table below; that nothing better was
overlooked is checked by trying out every configuration by the same laws. Both know nothing of the tuner's predictions.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from autotune.bench import campaign
from autotune.errors import MemoryLimitError, ResultNotFoundError
from autotune.model.source import PRESETS
from autotune.options import Options
from autotune.recorded import replay
from autotune.records import Hybrid, Result
from autotune.store import recording
from autotune.store.entry import WORKLOADS
from autotune.store.recording import Recording
from tests.hosts.synthetic.exhaustive import Exhaustive
from tests.hosts.synthetic.generate import record
from tests.hosts.synthetic.machines import LARGE, MACHINES, MEDIUM, SMALL
from tests.hosts.synthetic.truth import Truth

HOSTS = Path(__file__).parent / "hosts"
FILES = (*sorted(HOSTS.glob("*.json")), *sorted((HOSTS / "synthetic").glob("*.json")))
BY_LABEL = {machine.host.label: machine for machine in MACHINES}
NAMES = {SMALL: "2B-4T", MEDIUM: "8B", LARGE: "70B"}

REGRET = 0.03
"""How much slower than the best there is a decision may be: the cost model's error on what it didn't see."""


@pytest.fixture(autouse=True)
def no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Optuna study decides nothing and takes most of a replay's time."""
    monkeypatch.setattr("autotune.recorded.TRIALS", None)


@functools.cache
def recorded(label: str, model: str) -> Recording:
    """A synthetic host's file; or where that is of other models, the same host made with this one."""
    machine = BY_LABEL[label]
    if model in machine.models:
        return recording.read(HOSTS / "synthetic" / f"{label}.json")
    return record(dataclasses.replace(machine, models=(model,)))


@functools.cache
def replayed(label: str, model: str, workload: str) -> Result:
    return replay(recorded(label, model), model, Options(workload=workload))


def gpu_layers(result: Result) -> int:
    layers = result.decision.chosen.configuration.device_layers
    return sum(layers.values()) - layers.get("cpu", 0)


def strategy(result: Result) -> str:
    found = result.device_config.strategy
    return "Hybrid" if isinstance(found, Hybrid) else found


# Every file


def answers(path: Path) -> Iterator[Result]:
    """The decisions that a recording has the measurements for, of all models there are."""
    found = recording.read(path)
    for model in (*PRESETS, LARGE):
        for workload in WORKLOADS:
            try:
                yield replay(found, model, Options(workload=workload))
            except ResultNotFoundError:
                break


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recording_gives_configurations_that_its_host_can_run(path: Path) -> None:
    """All layers are somewhere, memory and threads are there, and it is no slower than what runs without tuning."""
    host, results = recording.read(path).host, list(answers(path))
    assert results, "no model's measurements are in it"
    for result in results:
        chosen, predicted = result.decision.chosen.configuration, result.decision.chosen.predicted
        assert sum(chosen.device_layers.values()) == len(result.model.layers)
        assert set(chosen.device_layers) <= {"cpu", *host.gpus.usable}
        assert min(chosen.decode_threads, chosen.prefill_threads) >= 1
        assert max(chosen.decode_threads, chosen.prefill_threads) <= host.limits.usable_threads
        assert 1 <= chosen.batch_size <= result.workload.max_batch
        assert all(use.total_bytes <= use.available_bytes for use in predicted.memory)
        assert (result.decision.speedup_over_default or 1.0) >= 1.0
        assert result.host == host


def test_a_model_that_was_not_recorded_is_refused() -> None:
    """With the host, the model and what is missing."""
    with pytest.raises(ResultNotFoundError, match=r"the recording of edge-4gb-board has no measurements of .*3B: "):
        replay(recorded("edge-4gb-board", SMALL), "bitnet_b1_58-3B")


def test_a_replay_touches_neither_this_host_nor_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is detected, timed or saved; the format is the recorded host's own, here an Arm board's."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a replay needs the recording alone")

    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr("autotune.recorded.detect", forbidden)
    monkeypatch.setattr(campaign, "run", forbidden)
    result = replay(recorded("edge-4gb-board", SMALL), SMALL)
    assert {site.format for site in result.model.layers[0].sites} == {"I2_S_ARM"}
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_decided_upon_as_before(tmp_path: Path) -> None:
    """A recording loses nothing on its way through a file."""
    path = tmp_path / "host.json"
    recording.write(path, recorded("office-4gb-gpu", MEDIUM))
    again = replay(recording.read(path), MEDIUM, Options(workload="chat"))
    assert again.decision.chosen == replayed("office-4gb-gpu", MEDIUM, "chat").decision.chosen


# What should be decided, by hand


class Case(NamedTuple):
    """What a synthetic host should get.

    Attributes:
        label: The host's.
        model: What it runs.
        workload: What for.
        strategy: Of the device config.
        gpu_layers: Fewest and most layers on GPUs.
        head: The head's device; None: either.
        batch: Batch size; None: any.
        threads: Fewest and most decode threads; None where the CPU has nothing to do, or no number stands out.
        why: How that follows from the laws.
    """

    label: str
    model: str
    workload: str
    strategy: str
    gpu_layers: tuple[int, int]
    head: str | None
    batch: int | None
    threads: tuple[int, int] | None
    why: str


# Sizes used below. 2B-4T: layers 521 MB, head (tied to the embedding) 657 MB, KV cache 157 MB a sequence of 2,048
# slots, 4.2 + 0.66 billion operations a token, the head's at half the speed on a CPU. 8B: a layer 54.5 MB and
# 8.4 MB of KV cache a sequence, head and embedding 1.05 GB each. 70B: a layer 214 MB and 8.4 MB, head and embedding
# 2.1 GB each. Of free memory 90 % may be planned with, of which a GPU's context takes 0.44 GB.
CASES = (
    Case(
        "laptop-8gb-gpu", SMALL, "chat", "GpuOnly", (30, 30), "cuda:0", 1, None,
        "All 1.3 GB fit into 7.2 GB. A token's 1.2 GB take the GPU 5.7 ms at 85 % of 256 GB/s and 0.9 ms of launches, "
        "the CPU 24 ms at 50 GB/s: no layer is better off there, and two handovers of ids cost 20 us.",
    ),
    Case(
        "laptop-8gb-gpu", SMALL, "server", "GpuOnly", (30, 30), "cuda:0", 32, None,
        "7.17 GB less context 0.44, weights 1.18 and activations 0.13 leave room for 34 sequences of 157 MB. 64 would "
        "need half of the layers on the CPU, at 4 ms each for 64 tokens, where all 30 on the GPU take 15 ms for 32.",
    ),
    Case(
        "laptop-8gb-gpu", MEDIUM, "server", "GpuOnly", (32, 32), "cuda:0", 8, None,
        "7.17 GB less context 0.44, weights 3.85 and activations 0.18 leave room for 10 sequences of 268 MB. 16 fit if "
        "the head is on the CPU, which takes 21 ms to read alone where the whole step takes 17 for 8 on the GPU.",
    ),
    Case(
        "laptop-8gb-gpu", LARGE, "chat", "Hybrid", (20, 30), None, 1, None,
        "Of 22 GB 6.7 fit: 30 layers, or 20 and the head. A layer takes the CPU 5.1 ms and the GPU 1.0, the head 44 "
        "and 10: per GB on the GPU either saves the same, so both are right: 335 ms where the CPU takes 456.",
    ),
    Case(
        "workstation-24gb-gpu", LARGE, "chat", "Hybrid", (79, 79), "cuda:0", 1, None,
        "21.7 GB less the context hold 79 layers and the head (19.7 GB) but not all with the embedding as well (22.0). "
        "The 80th layer on the CPU takes the embedding along and costs 3.4 ms; the head there would cost 31.",
    ),
    Case(
        "office-4gb-gpu", MEDIUM, "chat", "Hybrid", (24, 24), "cuda:0", 1, (6, 12),
        "3.02 GB less context 0.44 and head 1.05 hold 24 layers of 62.9 MB: 8 layers at 1.7 ms on the CPU, 24 at 0.38 "
        "and 6.4 ms of head on the GPU are 29 ms. All layers on the GPU and the head on the CPU: 12 + 27 = 39 ms.",
    ),
    Case(
        "edge-4gb-board", SMALL, "chat", "CpuOnly", (0, 0), "cpu", 1, (4, 4),
        "No GPU. Three cores nearly saturate the memory (7.85 of 7.95 GB/s), but 5.9 billion operations (the head's "
        "counted twice) take 24 ms on three and 18 on four.",
    ),
    Case(
        "edge-4gb-board", SMALL, "server", "CpuOnly", (0, 0), "cpu", 2, (4, 4),
        "One sequence takes 154 + 18 = 173 ms, so instead of 100 ms 1.25 x 173 = 216 are allowed: two take 197, four "
        "246.",
    ),
    Case(
        "server-two-sockets-two-gpus", LARGE, "chat", "GpuOnly", (80, 80), None, 1, None,
        "All 23 GB fit on one A100, which takes 20 ms: 19.4 GB at 1,105 GB/s and 2.4 ms of launches. The CPUs take "
        "81 ms to read them, 13 to calculate and 12 to begin and end on 64 threads.",
    ),
    Case(
        "server-two-sockets-two-gpus", LARGE, "server", "GpuOnly", (80, 80), "cuda:1", 64, None,
        "A sequence's KV cache is 671 MB: one GPU holds 23 beside the weights, two 79. A step of 64 takes 62 ms, 1.0 "
        "a token; of 16 on one GPU 23 ms, 1.4 a token; prompts add 1.4 a token either way.",
    ),
    Case(
        "server-two-sockets-unequal-gpus", LARGE, "chat", "GpuOnly", (80, 80), "cuda:1", 1, None,
        "22.0 GB are too much for the first GPU's 21.2, but not with head and 1 to 14 layers on the second, whose "
        "5.3 GB hold no more. That costs a handover of 19 us more; a layer on the CPU would cost over 1 ms.",
    ),
    Case(
        "desktop-p-and-e-cores", SMALL, "chat", "CpuOnly", (0, 0), "cpu", 1, (8, 8),
        "Eight performance cores saturate the memory (61.8 of 62 GB/s) and compute 2.9 TOP/s. One efficiency core more "
        "and equal shares make that 9 x 0.36: 1.2; 24 threads compute 3.1, which saves 0.15 ms a step, but take 1.2 "
        "longer to begin and end.",
    ),
    Case(
        "desktop-p-and-e-cores", SMALL, "server", "CpuOnly", (0, 0), "cpu", 16, None,
        "A step takes 19 ms and 2.9 a sequence: 16 take 66 ms, 32 would 112 of the 100 that are allowed.",
    ),
    Case(
        "container-2-of-64-cpus", SMALL, "chat", "CpuOnly", (0, 0), "cpu", 1, (2, 2),
        "Two threads are all that the quota allows, and neither saturates the memory.",
    ),
    Case(
        "container-2-of-64-cpus", SMALL, "server", "CpuOnly", (0, 0), "cpu", 4, (2, 2),
        "A step takes 21 ms and 17.4 a sequence: four take 91 ms, eight would 160 of the 100 that are allowed.",
    ),
    Case(
        "container-2-of-64-cpus", SMALL, "offline", "CpuOnly", (0, 0), "cpu", 32, (2, 2),
        "More sequences share the 21 ms. 7.7 GB less weights 1.2 and activations 0.1 hold 39 of 157 MB.",
    ),
    Case(
        "container-2-of-64-cpus", MEDIUM, "server", "CpuOnly", (0, 0), "cpu", 1, (2, 2),
        "One sequence takes 52 + 47 = 99 ms, two would take 147: more than 100, and than 1.25 x 99.",
    ),
    Case(
        "gpu-almost-full", SMALL, "chat", "CpuOnly", (0, 0), "cpu", 1, (6, 12),
        "No GPU was timed. Six threads take 34.4 ms and twelve 34.1.",
    ),
    Case(
        "gpu-almost-full", SMALL, "server", "CpuOnly", (0, 0), "cpu", 8, None,
        "A step takes 28 ms and 5 a sequence: 8 take 68 ms, 16 would 108 of the 100 that are allowed.",
    ),
    Case(
        "server-slow-gpu", SMALL, "chat", "CpuOnly", (0, 0), "cpu", 1, (12, 32),
        "Without Triton a layer's 69 million weights are unpacked through 1.7 GB, 15 ms at 109 GB/s; the CPU reads its "
        "17 MB in 0.1 ms. The head is slower there as well: 6 ms, and 4.4 + 0.5 on the CPU.",
    ),
    Case(
        "server-slow-gpu", SMALL, "server", "CpuOnly", (0, 0), "cpu", 32, None,
        "On 32 threads a step takes 10.5 ms and 1.65 a sequence: 32 take 63 ms, 64 would 116 of the 100 that are "
        "allowed.",
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.label}-{NAMES[case.model]}-{case.workload}")
def test_the_decision_is_what_follows_from_the_laws(case: Case) -> None:
    """See the case's own reason."""
    result = replayed(case.label, case.model, case.workload)
    chosen = result.decision.chosen.configuration
    assert strategy(result) == case.strategy
    assert case.gpu_layers[0] <= gpu_layers(result) <= case.gpu_layers[1]
    assert case.head in (None, chosen.head_device)
    assert case.batch in (None, chosen.batch_size)
    if case.threads is not None:
        assert case.threads[0] <= chosen.decode_threads <= case.threads[1]


def test_every_host_has_an_expected_decision() -> None:
    """Who adds a host says what should come out."""
    assert {case.label for case in CASES} == set(BY_LABEL)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("label", BY_LABEL)
def test_no_configuration_is_much_better_than_the_chosen_one(label: str, workload: str) -> None:
    """Of all there are, tried one and all by the host's laws, none beats it by more than the cost model's error."""
    model = BY_LABEL[label].models[0]
    result = replayed(label, model, workload)
    truth = Truth(BY_LABEL[label], result.model, result.workload)
    best, least = Exhaustive(truth).best()
    chosen = result.decision.chosen.configuration
    taken = truth.times(chosen)
    place = "tpot_s" if workload == "chat" else "request_token_s"
    own_s, best_s = getattr(taken, place), getattr(least, place)
    assert own_s <= (1 + REGRET) * best_s, f"{chosen} takes {own_s / best_s - 1:.1%} longer than {best}"


# What stands out about single hosts


def test_a_model_too_large_for_a_board_is_refused_with_what_it_needs() -> None:
    """4.1 GB don't fit into 90 % of 3.4."""
    with pytest.raises(MemoryLimitError, match=r"needs 4\.14 GB for one sequence"):
        replayed("edge-4gb-board", MEDIUM, "chat")


def test_unequal_gpus_are_not_filled_in_proportion() -> None:
    """A fifth of 80 layers, with the head, is too much for the GPU that has a fifth of the memory."""
    result = replayed("server-two-sockets-unequal-gpus", LARGE, "chat")
    layers = result.decision.chosen.configuration.device_layers
    assert 1 <= layers["cuda:1"] <= 14
    assert layers["cuda:0"] <= 85


def test_one_gpu_is_enough_where_a_second_one_adds_only_a_handover() -> None:
    """Layers run one after the other, so a second GPU makes one sequence no faster."""
    result = replayed("server-two-sockets-two-gpus", LARGE, "chat")
    assert len(result.decision.chosen.configuration.device_layers) == 1


def test_filling_a_slow_gpu_is_shown_to_be_slower() -> None:
    """Every layer on it costs 15 ms more, and the curve over the split says so."""
    curve = replayed("server-slow-gpu", SMALL, "chat").decision.split_curve
    times = [point.tpot_s for point in curve]
    assert len(times) == 31
    assert all(later > earlier + 0.012 for earlier, later in itertools.pairwise(times[1:]))
    assert times[-1] > 30 * times[0]


def test_prefill_uses_efficiency_cores_that_decode_leaves_alone() -> None:
    """512 tokens are bound by arithmetic: 24 x 0.36 of a performance core are more than 8."""
    chosen = replayed("desktop-p-and-e-cores", SMALL, "chat").decision.chosen.configuration
    assert (chosen.decode_threads, chosen.prefill_threads) == (8, 24)


def test_a_gpu_without_room_is_named_with_the_reason() -> None:
    """And nothing is put on it."""
    result = replayed("gpu-almost-full", SMALL, "chat")
    assert [line for line in result.warnings if "cuda:0" in line and "315 MB of its memory free" in line]
    assert result.decision.split_curve == ()
    assert result.device_config.gpu_memory_fraction is None


def test_a_hybrid_beats_both_devices_alone() -> None:
    """Where not all fits on the GPU, the best split is faster than the CPU, and than all layers on the GPU."""
    for label, model in (("office-4gb-gpu", MEDIUM), ("workstation-24gb-gpu", LARGE)):
        result = replayed(label, model, "chat")
        curve = result.decision.split_curve
        assert curve[0].tpot_s > 2.5 * result.decision.chosen.predicted.tpot_s
        assert curve[-1].tpot_s > 1.3 * result.decision.chosen.predicted.tpot_s
