from __future__ import annotations

import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune import loader
from autotune.adapt import loading
from autotune.adapt.loading import get_adaptive_device_config
from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.tuner import AdaptiveTuner
from autotune.errors import UsageError
from autotune.host import fingerprint
from autotune.model import source
from autotune.records import Result
from autotune.store import cache, paths
from tests import replayed
from tests.builders import build_result

MODEL = "bitnet-b1.58-2B-4T"
PRESSED = PerformanceMetrics(20.0, 0.95, None, 0.9)
CALM = PerformanceMetrics(20.0, 0.7, None, 0.9)
ROOMY = PerformanceMetrics(20.0, 0.2, None, 0.9)


@pytest.fixture(autouse=True)
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and loader and adaptation as they are in a new process."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(tmp_path / "system"))
    monkeypatch.setattr(loader, "_answers", {})
    monkeypatch.setattr(loader, "_warned", set())
    monkeypatch.setattr(loader, "_host_fingerprint", [])
    monkeypatch.setattr(loading, "_following", {})


def save(workload: str = "server", **changes: object) -> Result:
    """A recorded host's result, filed as if it were this host's."""
    result = replayed.on_cpu(workload)
    found = replace(result.host.fingerprint, cheap=fingerprint.cheap())
    model = replace(result.model, source_digest=source.digest(source.resolve(MODEL), None))
    result = replace(result, host=replace(result.host, fingerprint=found), model=model, **changes)
    cache.write(result, {})
    return result


def batches(metrics: PerformanceMetrics, times: int = 1, workload: str = "server") -> list[int]:
    return [get_adaptive_device_config(MODEL, metrics, workload).recommended_batch_size for _ in range(times)]


def test_each_call_is_an_observation_that_counts_at_once() -> None:
    """Pressure halves the batch; room doubles what memory was never short for at the first call, else at the second."""
    saved = save()
    assert get_adaptive_device_config(MODEL, CALM) == saved.device_config
    assert batches(PRESSED, 4) == [4, 2, 1, 1]
    assert batches(ROOMY, 7) == [1, 2, 2, 4, 4, 8, 8]
    assert batches(CALM, 3) == [8, 8, 8]


def test_workloads_are_followed_apart() -> None:
    """What one runs into is not the other's trouble."""
    save()
    save("chat")
    assert batches(PRESSED) == [4]
    assert batches(CALM, workload="chat") == [1]
    assert batches(CALM) == [4]


def test_without_a_result_it_is_the_fallback_and_a_warning() -> None:
    """Whatever is observed: a program that loads a model must start."""
    with pytest.warns(loader.FallbackWarning, match="tune with"):
        assert get_adaptive_device_config(MODEL, PRESSED) == loader.get_fallback_config()
    assert get_adaptive_device_config(MODEL, ROOMY) == loader.get_fallback_config()
    with pytest.warns(loader.FallbackWarning):
        assert get_adaptive_device_config("no such model", PRESSED) == loader.get_fallback_config()


def test_a_new_result_begins_anew() -> None:
    """Made after the first call, or made again."""
    with pytest.warns(loader.FallbackWarning):
        batches(CALM)
    save()
    assert batches(PRESSED) == [4]
    saved = save(created_at="2031-01-01T00:00:00+00:00")
    assert get_adaptive_device_config(MODEL, CALM) == saved.device_config


def test_it_goes_on_from_a_configuration_that_the_loader_shrank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory was short when the model was loaded, so the loader gave one of the smaller ones."""
    result = save()
    smaller = next(one.configuration for one in result.smaller if one.configuration.batch_size == 4)
    shrunk = AdaptiveTuner(result, start=smaller).current()
    monkeypatch.setattr(loading, "get_optimal_device_config", lambda *_: shrunk)
    assert get_adaptive_device_config(MODEL, CALM) == shrunk
    assert batches(PRESSED) == [2]


def test_a_configuration_that_the_result_doesnt_know_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing smaller fitted, and the loader fell back."""
    save()
    fallback = replace(loader.get_fallback_config(), cpu_threads=77)
    monkeypatch.setattr(loading, "get_optimal_device_config", lambda *_: fallback)
    assert get_adaptive_device_config(MODEL, PRESSED) is fallback


def test_a_result_that_nothing_can_be_predicted_from_is_left_as_it_is() -> None:
    """Its measurements are too few; a loader must start all the same."""
    result = build_result(fingerprint.cheap(), source.digest(source.resolve(MODEL), None))
    cache.write(result, {})
    assert get_adaptive_device_config(MODEL, PRESSED) == result.device_config


def test_later_calls_make_no_tuner_and_read_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what the first call is for."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("expected no further work")

    save()
    batches(CALM)
    monkeypatch.setattr(loading, "AdaptiveTuner", refuse)
    monkeypatch.setattr(loading, "load_result", refuse)
    monkeypatch.setattr("os.open", refuse)
    assert batches(PRESSED, 2) == [4, 2]


def test_a_tuner_of_ones_own_begins_with_the_saved_result() -> None:
    """By the model's name, which its advice repeats."""
    result = save()
    tuner = AdaptiveTuner.for_model(MODEL)
    assert tuner.current() == result.device_config
    assert tuner.check_host()


def test_threads_may_call_it_together() -> None:
    """Each observation counts once."""
    save()
    calls = [threading.Thread(target=batches, args=(PRESSED,)) for _ in range(2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert batches(CALM) == [2]


def test_a_workload_that_there_isnt_is_refused() -> None:
    """As by the loader."""
    with pytest.raises(UsageError, match="workload"):
        get_adaptive_device_config(MODEL, CALM, "chats")
