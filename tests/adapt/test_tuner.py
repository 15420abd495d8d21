from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from autotune import loader
from autotune.adapt.drift import LEARNT_FROM
from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.tuner import AdaptiveTuner
from autotune.errors import BenchmarkError, ResultNotFoundError, StoreError, UsageError
from autotune.host import fingerprint
from autotune.outlook import Outlook
from autotune.records import Hybrid, PartRun
from tests import replayed
from tests.builders import build_confirmation, build_host, build_result

PRESSED = PerformanceMetrics(100.0, 0.95, 0.9, 0.9)
CALM = PerformanceMetrics(100.0, 0.7, 0.9, 0.9)
ROOMY = PerformanceMetrics(100.0, 0.2, 0.9, 0.9)


@pytest.fixture
def on_cpu() -> AdaptiveTuner:
    return AdaptiveTuner(replayed.on_cpu(), model="my model.gguf")


@pytest.fixture
def on_gpu() -> AdaptiveTuner:
    return AdaptiveTuner(replayed.on_gpu())


def fed(tuner: AdaptiveTuner, metrics: PerformanceMetrics, times: int = 1) -> list[int]:
    """Batch sizes after each of some equal observations."""
    return [tuner.observe(metrics).device_config.recommended_batch_size for _ in range(times)]


# What is proposed


def test_it_begins_with_what_was_chosen(tuner: AdaptiveTuner) -> None:
    """And keeps to it while nothing speaks against it."""
    start = tuner.configuration
    proposal = tuner.observe(CALM)
    assert not proposal.changed
    assert (proposal.configuration, proposal.device_config) == (start, tuner.current())
    assert proposal.why == (
        "Memory pressure of 70 % is between 50 % and 90 %, where nothing has to change"
        + ("; the GPU is busy for 90 % of the time." if tuner.current().strategy == "GpuOnly" else ".")
    )


def test_pressure_halves_the_batch_each_time(on_cpu: AdaptiveTuner) -> None:
    """Down to one sequence, and says so when nothing is left."""
    start = on_cpu.current().recommended_batch_size
    assert start == 8
    first = on_cpu.observe(PRESSED)
    assert first.changed
    assert first.why.startswith("A batch of 4 instead of 8: memory pressure of 95 % is above 90 %, and this frees ")
    assert fed(on_cpu, PRESSED, 4) == [2, 1, 1, 1]
    last = on_cpu.observe(PRESSED)
    assert not last.changed
    assert "nothing is left to give" in last.why
    assert on_cpu.configuration.batch_size == 1


def test_room_brings_the_batch_back_but_not_beyond_what_pays(on_cpu: AdaptiveTuner) -> None:
    """After twice the usual patience, as memory was short for it; 8 is what the workload's limit allows."""
    fed(on_cpu, PRESSED)
    assert fed(on_cpu, ROOMY, 6) == [4, 4, 4, 4, 4, 8]
    last = on_cpu.observe(ROOMY)
    assert (last.changed, last.device_config.recommended_batch_size) == (False, 8)
    assert "16 keeps the workload's limits" in last.why or "16 is not predicted to be faster" in last.why


def test_observations_must_ask_in_a_row(on_cpu: AdaptiveTuner) -> None:
    """One that doesn't begins the count anew."""
    fed(on_cpu, PRESSED)
    assert fed(on_cpu, ROOMY, 5) == [4] * 5
    waiting = on_cpu.observe(CALM)
    assert not waiting.changed
    proposal = on_cpu.observe(ROOMY)
    assert proposal.why.startswith("Waiting for 6 observations in a row that ask for a batch of 8, this is number 1: ")


def test_without_patience_the_first_observation_counts() -> None:
    """A batch that memory was never short for."""
    tuner = AdaptiveTuner(replayed.on_cpu(), patience=1)
    small = replace(tuner.configuration, batch_size=2)
    tuner.reset(small)
    assert tuner.current().recommended_batch_size == 2
    assert fed(tuner, ROOMY, 2) == [4, 8]


def test_a_gpu_without_memory_gives_layers_away_at_last(on_gpu: AdaptiveTuner) -> None:
    """First batches, then as many layers as is enough."""
    sizes = fed(on_gpu, PRESSED, 5)
    assert sizes == [16, 8, 4, 2, 1]
    assert on_gpu.current().strategy == "GpuOnly"
    moved = on_gpu.observe(PRESSED)
    assert isinstance(moved.device_config.strategy, Hybrid)
    assert "layers on cuda:0" in moved.why


def test_an_idle_gpu_is_no_reason_for_a_slower_split(on_gpu: AdaptiveTuner) -> None:
    """Unless what is observed is slower still, and that for three observations in a row."""
    expected = replayed.on_gpu().decision.chosen.predicted.tokens_per_s
    idle = PerformanceMetrics(expected, 0.6, 0.1, 0.1)
    assert fed(on_gpu, idle, 10) == [32] * 10
    assert on_gpu.current().strategy == "GpuOnly"
    on_gpu.reset()
    slow = replace(idle, throughput_tokens_per_s=0.05 * expected)
    assert [on_gpu.observe(slow).changed for _ in range(5)] == [False, False, True, False, False]
    assert isinstance(on_gpu.current().strategy, Hybrid)


def test_a_split_needs_memory_on_the_cpu_as_well() -> None:
    """By what the host has now: here just enough to drive the GPU."""
    result = replayed.on_gpu()
    driving = next(use for use in result.decision.chosen.predicted.memory if use.device == "cpu")
    memory = replace(result.host.memory, usable_bytes=int(driving.total_bytes / 0.9) + 1_000_000)
    tuner = AdaptiveTuner(result, replace(result.host, memory=memory))
    proposal = tuner.observe(PerformanceMetrics(1.0, 0.6, 0.1, 0.1))
    assert not proposal.changed
    assert proposal.why.endswith(
        "is busy for only 10 % of the time, but no split with a batch of 32 fits the memory and keeps the limits."
    )


def test_what_was_run_is_expected_as_it_ran() -> None:
    """And not as it was predicted; the runs are synthetic."""
    result = replayed.on_cpu()
    chosen = result.decision.chosen.configuration
    slower = replace(chosen, batch_size=1)
    result = replace(result, confirmation=build_confirmation(result.workload, chosen, slower))
    measured = Outlook(result).chosen.measured
    assert measured is not None
    assert measured.tokens_per_s != pytest.approx(result.decision.chosen.predicted.tokens_per_s, rel=0.2)
    tuner = AdaptiveTuner(result)
    tuner.observe(replace(CALM, throughput_tokens_per_s=measured.tokens_per_s))
    assert tuner.drift.ratio == pytest.approx(1.0)


def test_what_ran_slowly_is_not_gone_back_to() -> None:
    """Predictions of the larger batch may be what they want, if it ran slower than its half; the runs are synthetic."""
    result = replayed.on_cpu("offline")
    chosen = result.decision.chosen.configuration
    half = chosen.batch_size // 2
    confirmation = build_confirmation(result.workload, chosen, replace(chosen, batch_size=half))
    decode, prefill = confirmation.runs
    fast = PartRun(replace(decode.part, size=half), (0.1,) * 6, {"cpu": (0.1,) * 6})
    slow = replace(decode, samples_s=(0.9,) * 6, device_s={"cpu": (0.9,) * 6})
    tuner = AdaptiveTuner(replace(result, confirmation=replace(confirmation, runs=(fast, slow, prefill))))
    assert fed(tuner, PRESSED) == [half]
    assert fed(tuner, ROOMY, 10) == [half] * 10
    assert f"a batch of {2 * half} is not predicted to be faster" in tuner.observe(ROOMY).why


def test_chat_takes_back_what_only_the_first_token_gains_by() -> None:
    """A small chunk frees memory and costs nothing per token; with room it goes."""
    tuner = AdaptiveTuner(replayed.on_gpu("chat"))
    chosen = tuner.configuration
    fed(tuner, PRESSED, 3)
    assert tuner.configuration.prefill_chunk < chosen.prefill_chunk
    assert [tuner.observe(ROOMY) for _ in range(30)][-1].configuration == chosen


def test_chat_stays_with_one_sequence() -> None:
    """However much memory there is."""
    tuner = AdaptiveTuner(replayed.on_cpu("chat"))
    assert fed(tuner, ROOMY, 20) == [1] * 20


# Drift


def test_the_ratio_is_learnt(on_cpu: AdaptiveTuner) -> None:
    """Of what is served; an observation of nothing says nothing."""
    expected = replayed.on_cpu().decision.chosen.predicted.tokens_per_s
    fed(on_cpu, replace(CALM, throughput_tokens_per_s=0.0), 3)
    assert on_cpu.drift.ratio is None
    assert on_cpu.drift.why == "No throughput was observed of this configuration yet."
    fed(on_cpu, replace(CALM, throughput_tokens_per_s=0.9 * expected))
    assert on_cpu.drift.ratio == pytest.approx(0.9)
    assert on_cpu.drift.why == "It runs at 90 % of the expected throughput (1 observation)."
    assert (on_cpu.retune_needed, on_cpu.advice) == (False, None)
    fed(on_cpu, PRESSED)
    assert on_cpu.drift.ratio is None


def test_a_sustained_slow_down_calls_for_tuning_again(on_cpu: AdaptiveTuner) -> None:
    """With the command, and the CPU's other work where it explains that."""
    fed(on_cpu, CALM, LEARNT_FROM + 10)
    assert not on_cpu.retune_needed
    fed(on_cpu, replace(CALM, throughput_tokens_per_s=70.0), 60)
    assert on_cpu.retune_needed
    assert on_cpu.drift.slow_down == pytest.approx(0.3, abs=0.01)
    assert on_cpu.advice is not None
    assert on_cpu.advice.startswith("It has been 30 % slower than at first for a while. It runs at ")
    assert on_cpu.advice.endswith("Tune again with: python -m autotune 'my model.gguf' --workload server")
    fed(on_cpu, CALM, 60)
    assert not on_cpu.retune_needed


def test_other_work_on_the_cpu_explains_a_slow_down(on_gpu: AdaptiveTuner) -> None:
    """Where it is busy for much longer than the model's own threads are."""
    steady = replace(CALM, cpu_utilization=0.1)
    fed(on_gpu, steady, LEARNT_FROM + 10)
    fed(on_gpu, replace(steady, throughput_tokens_per_s=50.0, cpu_utilization=0.9), 60)
    assert (
        "slower than at first for a while: the CPU is busy with something else as well, for about " in on_gpu.drift.why
    )


def test_missing_requests_are_no_slow_down(on_cpu: AdaptiveTuner) -> None:
    """Threads that wait are not slow; and of a slow-down before that it is said."""
    fed(on_cpu, CALM, LEARNT_FROM + 10)
    waiting = replace(CALM, throughput_tokens_per_s=20.0, cpu_utilization=0.1)
    fed(on_cpu, waiting, 100)
    assert not on_cpu.retune_needed
    fed(on_cpu, replace(CALM, throughput_tokens_per_s=50.0), 60)
    fed(on_cpu, waiting)
    assert "but the devices wait: requests are missing, and not speed" in on_cpu.drift.why


@pytest.mark.parametrize(("gpu", "alarm"), [(0.1, False), (0.9, True), (None, True)])
def test_an_idle_gpu_waits_too(on_gpu: AdaptiveTuner, gpu: float | None, alarm: bool) -> None:
    """Where its utilisation is unknown, it counts as busy."""
    fed(on_gpu, replace(CALM, throughput_tokens_per_s=1000.0), LEARNT_FROM)
    fed(on_gpu, PerformanceMetrics(700.0, 0.7, gpu, 0.0), 60)
    assert on_gpu.retune_needed == alarm


def test_another_host_calls_for_tuning_again() -> None:
    """Given as it is now, or looked at."""
    result = replayed.on_cpu()
    same = AdaptiveTuner(result, result.host)
    assert not same.drift.host_changed
    other = AdaptiveTuner(result, replace(result.host, fingerprint=build_host().fingerprint))
    assert other.drift.host_changed
    assert other.advice is not None
    assert other.advice.startswith("This is no longer the host that the result was made on.")
    assert not same.check_host()
    assert same.retune_needed
    here = replace(result.host, fingerprint=replace(result.host.fingerprint, cheap=fingerprint.cheap()))
    assert AdaptiveTuner(replace(result, host=here)).check_host()


# State


def test_what_was_learnt_outlives_a_process(tmp_path: Path, tuner: AdaptiveTuner) -> None:
    """A tuner that is loaded goes on as the first one would have, in its proposals, words and drift."""
    path = tmp_path / "state.json"
    past = [PRESSED, PRESSED, ROOMY, *[CALM] * (LEARNT_FROM + 5), ROOMY]
    for metrics in past:
        tuner.observe(metrics)
    tuner.save(path)
    second = AdaptiveTuner.load(path, tuner._result, patience=1)
    assert second.configuration == tuner.configuration
    assert second.drift == tuner.drift
    for metrics in (*[ROOMY] * 8, PRESSED, *[replace(CALM, throughput_tokens_per_s=10.0)] * 60):
        assert second.observe(metrics) == tuner.observe(metrics)
        assert second.drift == tuner.drift
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def state(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A saved state of a tuner that saw a little, as JSON."""
    tuner = AdaptiveTuner(replayed.on_cpu())
    fed(tuner, PRESSED)
    fed(tuner, CALM)
    path = tmp_path / "state.json"
    tuner.save(path)
    return path, json.loads(path.read_bytes())


def test_a_state_is_small_and_plain(tmp_path: Path) -> None:
    """One JSON object that names its format and version."""
    path, document = state(tmp_path)
    assert path.stat().st_size < 4096
    assert (document["format"], document["version"]) == ("bitnet-autotune adaptation", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, written by a newer autotune; this one reads version 1"),
        ({"version": 0}, "has version 0, written by an older autotune"),
        ({"format": "bitnet-autotune recording"}, "its format is 'bitnet-autotune recording'"),
        ({"learnt": {"seen": -1}}, "holds what no tuner writes: .*learnt.seen"),
        ({"learnt": {"log_ratio": 1e6}}, "holds what no tuner writes: .*learnt.log_ratio"),
        ({"learnt": {"first": [0.0] * 1000}}, "holds what no tuner writes: .*learnt.first"),
        ({"history": {"times": "often"}}, "holds what no tuner writes: .*history.times"),
        ({"surprise": 1}, "holds what no tuner writes: .*unknown field"),
        ({"configuration": {"device_layers": {"cpu": 3}}}, "holds what no tuner writes: .*configuration"),
    ],
)
def test_a_state_that_no_tuner_wrote_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """In one sentence with the file's name."""
    path, document = state(tmp_path)
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(StoreError, match=message) as refused:
        AdaptiveTuner.load(path, replayed.on_cpu())
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_damaged_missing_or_foreign_state_is_refused(tmp_path: Path) -> None:
    """Cut short, not there, of another result, or of a configuration that the result doesn't know."""
    path, document = state(tmp_path)
    raw = path.read_bytes()
    with pytest.raises(StoreError, match=r"with workload chat, got that of another with server"):
        AdaptiveTuner.load(path, replayed.on_cpu("chat"))
    retuned = replace(replayed.on_cpu(), created_at="2031-01-01T00:00:00+00:00")
    with pytest.raises(StoreError, match=r"the result with created_at 2031"):
        AdaptiveTuner.load(path, retuned)
    path.write_text(json.dumps({**document, "configuration": {**document["configuration"], "decode_threads": 77}}))
    with pytest.raises(StoreError, match="expected a configuration that the result knows"):
        AdaptiveTuner.load(path, replayed.on_cpu())
    for end in (0, 1, len(raw) // 2, len(raw) - 3):
        path.write_bytes(raw[:end])
        with pytest.raises(StoreError, match="cut short, damaged or something else"):
            AdaptiveTuner.load(path, replayed.on_cpu())
    with pytest.raises(StoreError, match=r"missing\.json: what was learnt can't be read: No such file"):
        AdaptiveTuner.load(tmp_path / "missing.json", replayed.on_cpu())
    with pytest.raises(StoreError, match="is not a regular file"):
        AdaptiveTuner.load(tmp_path, replayed.on_cpu())


def test_a_state_that_cant_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be full, the folder gone."""
    path, _ = state(tmp_path)
    raw = path.read_bytes()
    tuner = AdaptiveTuner(replayed.on_cpu())
    with pytest.raises(StoreError, match="can't be written: No such file or directory"):
        tuner.save(tmp_path / "nowhere" / "state.json")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="can't be written: No space left on device"):
        tuner.save(path)
    assert path.read_bytes() == raw
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


# Starting


def test_a_configuration_of_another_space_is_refused(on_cpu: AdaptiveTuner) -> None:
    """With a point that there is."""
    with pytest.raises(ValueError, match="expected a point of the search space"):
        on_cpu.reset(replace(on_cpu.configuration, prefill_chunk=7))


def test_what_no_tuner_could_begin_with_is_refused() -> None:
    """Too little patience, or measurements that nothing can be predicted from."""
    with pytest.raises(UsageError, match="patience must be at least 1 observation, got 0"):
        AdaptiveTuner(replayed.on_cpu(), patience=0)
    with pytest.raises(BenchmarkError, match="was not measured"):
        AdaptiveTuner(build_result())


def test_a_model_without_a_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that makes one; and a workload that there isn't, with those that there are."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loader, "_host_fingerprint", [])
    with pytest.raises(
        ResultNotFoundError, match=r"make it with `python -m autotune bitnet-b1.58-2B-4T --workload chat`"
    ):
        AdaptiveTuner.for_model("bitnet-b1.58-2B-4T", "chat")
    with pytest.raises(UsageError, match="workload"):
        AdaptiveTuner.for_model("bitnet-b1.58-2B-4T", "chats")


def test_proposals_are_plain_values(on_cpu: AdaptiveTuner) -> None:
    """A loader can log them as JSON."""
    logged = json.loads(msgspec.json.encode(on_cpu.observe(PRESSED)._asdict()))
    assert logged["changed"] is True
    assert logged["device_config"]["recommended_batch_size"] == 4
