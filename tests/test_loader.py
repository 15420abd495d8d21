from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import autotune
from autotune import errors, loader
from autotune.host import fingerprint
from autotune.host.pseudofiles import Root
from autotune.model import source
from autotune.records import Candidate, DeviceConfig, Result
from autotune.store import cache, paths
from tests.builders import build_candidate, build_result

FASTER = DeviceConfig(strategy="CpuOnly", cpu_threads=3, gpu_memory_fraction=None, recommended_batch_size=16)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file, an empty cache, and a loader as it is in a new process."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(tmp_path / "system"))
    monkeypatch.setattr(loader, "_answers", {})
    monkeypatch.setattr(loader, "_warned", set())
    monkeypatch.setattr(loader, "_host_fingerprint", [])
    path = tmp_path / "model.json"
    path.write_text('{"model_type": "bitnet"}')
    return path


def result_for(model: Path | str, weight_format: str | None = None, **overrides: object) -> Result:
    """A synthetic result for a model on this very host."""
    digest = source.digest(source.resolve(model), weight_format)
    return build_result(fingerprint.cheap(), digest, **overrides)


def save(model: Path | str, weight_format: str | None = None, **overrides: object) -> Result:
    result = result_for(model, weight_format, **overrides)
    cache.write(result, {})
    return result


def refuse(*arguments: object, **options: object) -> object:
    raise AssertionError("expected no further work")


# The saved answer


def test_the_saved_configuration_is_given(model: Path) -> None:
    """As the record that was saved, for paths and strings alike, with no warning."""
    result = save(model)
    assert loader.get_optimal_device_config(model) == result.device_config
    assert loader.get_optimal_device_config(str(model)) == result.device_config


def test_a_preset_is_found_by_its_name(model: Path) -> None:
    """Nothing need lie on disk for it but the package."""
    result = save("bitnet-b1.58-2B-4T")
    assert loader.get_optimal_device_config("microsoft/bitnet-b1.58-2B-4T") == result.device_config


def test_workloads_and_formats_have_answers_of_their_own(model: Path) -> None:
    """What was tuned for one isn't given for another."""
    server = save(model)
    chat = save(model, workload="chat", device_config=FASTER)
    packed = save(model, weight_format="TQ2_0", device_config=FASTER)
    assert loader.get_optimal_device_config(model) == server.device_config
    assert loader.get_optimal_device_config(model, "chat") == chat.device_config
    assert loader.get_optimal_device_config(model, format="TQ2_0") == packed.device_config
    with pytest.warns(loader.FallbackWarning):
        loader.get_optimal_device_config(model, "offline")


def test_later_calls_do_no_work_but_stat(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model isn't read, the host isn't looked at and no entry is parsed again."""
    result = save(model)
    loader.get_optimal_device_config(model)
    monkeypatch.setattr(loader, "_look_up", refuse)
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert loader.get_optimal_device_config(model) == result.device_config


def test_the_host_is_looked_at_once_per_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the answer has to be looked up again."""
    save(model)
    loader.get_optimal_device_config(model)
    monkeypatch.setattr(fingerprint, "cheap", refuse)
    model.write_text('{"model_type": "llama"}')
    with pytest.warns(loader.FallbackWarning):
        loader.get_optimal_device_config(model)


def test_a_new_result_is_seen_by_a_running_process(model: Path) -> None:
    """Tuned after the first call, tuned again, or forgotten."""
    with pytest.warns(loader.FallbackWarning):
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()
    first = save(model)
    assert loader.get_optimal_device_config(model) == first.device_config
    second = save(model, device_config=FASTER)
    assert loader.get_optimal_device_config(model) == second.device_config
    for path in Path(os.environ["AUTOTUNE_CACHE"]).rglob("*.json"):
        path.unlink()
    assert loader.get_optimal_device_config(model) == loader.get_fallback_config()


def test_a_result_in_an_earlier_layer_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the answer so far came from a later one."""
    named = os.environ["AUTOTUNE_CACHE"]
    monkeypatch.setenv("AUTOTUNE_CACHE", "")
    system = save(model)
    monkeypatch.setenv("AUTOTUNE_CACHE", named)
    assert loader.get_optimal_device_config(model) == system.device_config
    save(model, device_config=FASTER)
    assert loader.get_optimal_device_config(model) == FASTER


def test_a_changed_model_file_is_another_model(model: Path) -> None:
    """An answer never outlives the file it was for."""
    result = save(model)
    assert loader.get_optimal_device_config(model) == result.device_config
    model.write_text('{"model_type": "llama"}')
    with pytest.warns(loader.FallbackWarning):
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()


def test_a_changed_file_in_a_models_folder_is_another_model(tmp_path: Path, model: Path) -> None:
    """The folder stands for the config.json in it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(model, folder / "config.json")
    result = save(folder)
    assert loader.get_optimal_device_config(folder) == result.device_config
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.warns(loader.FallbackWarning):
        loader.get_optimal_device_config(folder)


# A saved answer on a host with less memory


def needing(candidate: Candidate, size_bytes: int) -> Candidate:
    (use,) = candidate.predicted.memory
    return replace(candidate, predicted=replace(candidate.predicted, memory=(replace(use, weights_bytes=size_bytes),)))


def save_too_large(model: Path, *smaller: Candidate, **options: object) -> str:
    """Saves a result whose configuration needs more memory than there is in any machine; returns its file."""
    result = result_for(model)
    decision = replace(result.decision, chosen=needing(build_candidate(batch_size=8), 10**18))
    return cache.write(replace(result, decision=decision, smaller=smaller), options)


def test_a_configuration_that_no_longer_fits_is_replaced_by_one_that_does(model: Path) -> None:
    """The first of those saved with it; the warning says why, what instead, and how to decide anew, once."""
    path = save_too_large(
        model,
        needing(build_candidate(150.0, batch_size=4), 10**17),
        needing(build_candidate(120.0, threads=1, batch_size=2), 1000),
        needing(build_candidate(100.0, batch_size=1), 10),
        workload="server",
        max_batch=16,
        max_tpot_ms=50.5,
        confirm=True,
        budget_s=20.0,
    )
    with pytest.warns(loader.ShrunkWarning) as caught:
        config = loader.get_optimal_device_config(model)
    assert config == DeviceConfig("CpuOnly", cpu_threads=1, gpu_memory_fraction=None, recommended_batch_size=2)
    (warning,) = caught
    assert re.fullmatch(
        r"the saved configuration needs 1e\+09 GB on cpu \([0-9.]+ GB usable now\): using batch 2 instead of 8 "
        r"\(predicted: 120 tokens/s instead of 200\); decide anew with: python -m autotune retune "
        rf"{re.escape(str(model))} --workload server --max-batch 16 --max-tpot-ms 50\.5",
        str(warning.message),
    )
    assert warning.filename == __file__
    assert loader.get_optimal_device_config(model) == config  # warnings are errors here
    assert Path(path).exists()


def test_where_nothing_saved_fits_the_fallback_is_used(model: Path) -> None:
    """With a warning that it may not fit either."""
    save_too_large(model, needing(build_candidate(batch_size=4), 10**17))
    with pytest.warns(loader.ShrunkWarning, match=r"no smaller one .* fits either: using the fallback .* may not fit;"):
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()


def test_memory_is_looked_at_again_with_a_new_result(model: Path) -> None:
    """Decided anew, it fits."""
    save_too_large(model)
    with pytest.warns(loader.ShrunkWarning):
        loader.get_optimal_device_config(model)
    result = save(model, device_config=FASTER)
    assert loader.get_optimal_device_config(model) == result.device_config


def test_a_shortage_can_be_asked_for(model: Path) -> None:
    """By commands that show what is saved; one that fits has none."""
    save_too_large(model, needing(build_candidate(batch_size=4), 10))
    entry = loader.find_entry(model, "server", None)
    assert entry is not None
    shortage = loader.memory_shortage(entry)
    assert shortage is not None
    assert "using batch 4 instead of 8" in shortage
    save(model)
    entry = loader.find_entry(model, "server", None)
    assert entry is not None
    assert loader.memory_shortage(entry) is None


# The fallback


def test_a_miss_says_what_has_changed_on_the_host(model: Path) -> None:
    """A result of this host as it was is not used, and the warning says why not."""
    result = result_for(model)
    before = replace(result.host.fingerprint, cheap="0" * 32)
    cpu = replace(result.host.cpu, name="Earlier CPU")
    host = replace(result.host, label=os.uname().nodename, fingerprint=before, cpu=cpu)
    cache.write(replace(result, host=host), {})
    with pytest.warns(loader.FallbackWarning, match=r"host \(which has changed .* measured: CPU Earlier CPU -> "):
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()


def test_a_miss_warns_once_and_names_the_command(model: Path) -> None:
    """Every word of it can be pasted into a shell; the warning points at the caller's line."""
    spaced = model.with_name("my model.json")
    shutil.copy(model, spaced)
    with pytest.warns(loader.FallbackWarning) as caught:
        first = loader.get_optimal_device_config(spaced, "chat", format="I2_S")
    assert first == loader.get_fallback_config()
    (warning,) = caught
    assert str(warning.message) == (
        "using the fallback configuration, for nothing is saved for this model and host; "
        f"tune with: python -m autotune '{spaced}' --workload chat --format I2_S"
    )
    assert warning.filename == __file__
    assert loader.get_optimal_device_config(spaced, "chat", format="I2_S") == first  # warnings are errors here


@pytest.mark.parametrize("name", ["missing.json", "missing/folder/x.gguf", "", "nul\0byte", "x" * 5000])
def test_a_model_that_does_not_exist_gets_the_fallback(tmp_path: Path, model: Path, name: str) -> None:
    """A program that loads a model must start; it reports what is wrong with the model itself, and better."""
    with pytest.warns(loader.FallbackWarning, match="tune with"):
        config = loader.get_optimal_device_config(name and f"{tmp_path}/{name}")
    assert config == loader.get_fallback_config()


def test_a_model_that_appears_later_is_found(model: Path) -> None:
    """A miss isn't remembered for longer than it is true."""
    save(model)
    hidden = model.rename(model.with_name("hidden.json"))
    with pytest.warns(loader.FallbackWarning):
        loader.get_optimal_device_config(model)
    hidden.rename(model)
    assert loader.get_optimal_device_config(model) == build_result().device_config


@pytest.mark.parametrize("change", [lambda raw: b"", lambda raw: raw[:-50], lambda raw: raw.replace(b"2", b"3")])
def test_a_bad_entry_gets_the_fallback(model: Path, change: Callable[[bytes], bytes]) -> None:
    """It is set aside with a warning of its own."""
    path = Path(cache.write(result_for(model), {}))
    path.write_bytes(change(path.read_bytes()))
    with pytest.warns((loader.FallbackWarning, cache.StoreWarning)) as caught:
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()
    assert [warning.category for warning in caught] == [cache.StoreWarning, loader.FallbackWarning]


def test_a_cache_that_is_no_folder_gets_the_fallback(model: Path) -> None:
    """Nor does it keep a program from starting."""
    Path(os.environ["AUTOTUNE_CACHE"]).write_text("")
    with pytest.warns(loader.FallbackWarning):
        assert loader.get_optimal_device_config(model) == loader.get_fallback_config()


def test_an_unknown_workload_is_the_callers_mistake(model: Path) -> None:
    """It would never be found, whatever was tuned."""
    for ask in (loader.get_optimal_device_config, loader.load_result):
        with pytest.raises(errors.UsageError, match="one of chat, server, offline, got 'sevrer'"):
            ask(model, "sevrer")


@pytest.mark.parametrize(
    ("cpus", "cpu_max", "threads"),
    [(1, "max 100000", 1), (3, "max 100000", 3), (64, "max 100000", 4), (64, "250000 100000", 2), (64, "1 100000", 1)],
)
def test_the_fallback_takes_at_most_four_of_the_usable_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, cpu_max: str, threads: int
) -> None:
    """Affinity and the cgroup's quota both count (here of a simulated host)."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": f"{cpu_max}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("autotune.host.pseudofiles.Root", lambda: Root(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert loader.get_fallback_config() == DeviceConfig(
        strategy="CpuOnly", cpu_threads=threads, gpu_memory_fraction=None, recommended_batch_size=1
    )


def test_the_fallback_needs_no_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems have none."""
    monkeypatch.delattr(os, "sched_getaffinity")
    threads = loader.get_fallback_config().cpu_threads
    assert threads is not None
    assert 1 <= threads <= 4


# The whole result


def test_the_whole_result_is_given_with_its_evidence(model: Path) -> None:
    """Equal to what was saved; None where nothing is."""
    assert loader.load_result(model) is None
    result = save(model, tune_time_s=7.0)
    assert loader.load_result(model) == result
    assert loader.load_result(model, "chat") is None


def test_the_result_of_a_model_that_does_not_exist_is_an_error(model: Path) -> None:
    """One who asks for evidence wants to know that the name is wrong."""
    with pytest.raises(errors.ModelError, match=r"missing\.json"):
        loader.load_result(model.with_name("missing.json"))


# The package


def test_the_public_names_are_all_there() -> None:
    """Everything in __all__ can be imported from the package, and dir() shows it before it was."""
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
    assert set(autotune.__all__) <= set(dir(autotune))
    assert autotune.get_optimal_device_config is loader.get_optimal_device_config
    assert autotune.DeviceConfig is DeviceConfig


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="module 'autotune' has no attribute 'tuna'"):
        autotune.__getattr__("tuna")


def test_loading_a_configuration_imports_no_numerical_library(model: Path) -> None:
    """In a fresh process: numpy, torch, optuna and pandas stay out, on a hit and on a miss."""
    save(model)
    script = (
        "import sys, warnings; before = set(sys.modules); import autotune\n"
        f"assert autotune.get_optimal_device_config({str(model)!r}).recommended_batch_size == 4\n"
        "warnings.simplefilter('ignore')\n"
        f"autotune.get_optimal_device_config({str(model)!r}, 'chat')\n"
        "heavy = {'numpy', 'torch', 'optuna', 'pandas', 'filelock', 'platformdirs', 'pathlib'}\n"
        "print(sorted((set(sys.modules) - before) & heavy))"
    )
    # Not under coverage's measurement of child processes, which has imports of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
