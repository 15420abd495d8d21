"""Results of another host of the same kind, taken over: whole results, replayed from recordings, in real folders."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from autotune import adoption, loader
from autotune.adoption import AdoptionWarning, adopt, import_
from autotune.errors import MemoryLimitError, ResultNotFoundError, StoreError
from autotune.host.hardware_class import hardware_class
from autotune.options import Options
from autotune.pipeline import conclude_again
from autotune.records import Fingerprint, Host, Result
from autotune.search.workload import make_workload
from autotune.store import cache, manage, paths
from autotune.store.entry import Entry, Key, encode, parse
from autotune.store.schema import decode_result
from autotune.store.seal import seal
from tests.builders import build_confirmation
from tests.replayed import hybrid, on_cpu, on_gpu

MODEL = "bitnet-b1.58-2B-4T"
HERE, ELSEWHERE = "1" * 32, "2" * 32
WISH = Options(confirm=False).request(16.0)


def twin_of(host: Host, cheap: str = HERE) -> Host:
    """A host that is equal to another one, and has all names and numbers of its own."""
    cores = tuple(replace(core, cpus=tuple(cpu + 8 for cpu in core.cpus), package=3) for core in host.cpu.cores)
    gpus = tuple(replace(gpu, uuid=f"GPU-of-{cheap}") for gpu in host.gpus.devices)
    return replace(
        host,
        label=f"host {cheap[0]}",
        cpu=replace(host.cpu, cores=cores),
        gpus=replace(host.gpus, devices=gpus),
        fingerprint=Fingerprint("f" * 32, cheap),
    )


def confirmed_of(result: Result) -> Result:
    """The same as if the choice and the default had been run (synthetic samples)."""
    decision = result.decision
    assert decision.default is not None
    chosen, default = decision.chosen.configuration, decision.default.configuration
    return replace(result, confirmation=build_confirmation(result.workload, chosen, default))


def measured_elsewhere(result: Result | None = None) -> Result:
    """A result that another host like ours measured."""
    result = result or on_cpu()
    return replace(result, provenance="measured", host=twin_of(result.host, ELSEWHERE), warnings=())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """This host, as far as adoption and loaders can tell: one like that of the recording; and an empty cache."""
    return become(twin_of(on_cpu().host), tmp_path, monkeypatch)


def become(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(folder / "system"))
    monkeypatch.setattr(adoption, "detect", lambda: host)
    monkeypatch.setattr(adoption, "find_kernels", lambda host: on_cpu().campaign.kernels)
    monkeypatch.setattr(loader, "_host_fingerprint", [host.fingerprint.cheap])
    return host


def file_of(result: Result, path: Path, request: dict[str, object] | None = None) -> str:
    """What the host that measured it would have exported."""
    _, raw = cache.document(result, request or WISH)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return str(path)


def saved_here(model: str = on_cpu().model.source_digest, workload: str = "server") -> Entry | None:
    return cache.read(HERE, model, workload)


# One file


def test_a_result_of_an_equal_host_becomes_this_host_s(here: Host, tmp_path: Path) -> None:
    """The same measurements and the same answer, under this host's record and name, and it says where it is from."""
    theirs = measured_elsewhere()
    (imported,) = import_(file_of(theirs, tmp_path / "theirs.json"))
    ours = cache.read_as(decode_result, HERE, theirs.model.source_digest, "server")
    assert ours is not None
    assert imported.path == Key(HERE, theirs.model.source_digest, "server").path_in(str(tmp_path / "cache"))
    assert ours == imported.result
    assert ours.host == here
    assert ours.campaign == theirs.campaign
    assert ours.device_config == theirs.device_config
    assert ours.decision.chosen == theirs.decision.chosen
    assert ours.provenance == "imported"
    assert ours.origin is not None
    assert (ours.origin.host_label, ours.origin.measured_at) == (theirs.host.label, theirs.created_at)
    assert ours.origin.hardware_class == hardware_class(here)
    assert ours.warnings == on_cpu().warnings[1:]  # its first says that it is a replay


def test_loaders_and_the_same_command_use_it_at_once(here: Host, tmp_path: Path) -> None:
    """It answers the wish that it was made for, with as large a budget and no larger one."""
    import_(file_of(measured_elsewhere(), tmp_path / "theirs.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader.get_optimal_device_config(MODEL) == on_cpu().device_config
    assert loader.find_answer(MODEL, Options(confirm=False), 16.0) is not None
    assert loader.find_answer(MODEL, Options(confirm=False), 17.0) is None
    assert loader.find_answer(MODEL, Options(), 16.0) is None
    assert loader.find_answer(MODEL, Options(confirm=False, max_batch=2), 16.0) is None


def test_what_was_run_stays_correction_and_proof(here: Host, tmp_path: Path) -> None:
    """A confirmed result is confirmed here as well, with the same samples and the same predictions."""
    theirs = measured_elsewhere(confirmed_of(on_cpu()))
    (imported,) = import_(file_of(theirs, tmp_path / "theirs.json", Options().request(16.0)))
    ours = imported.result
    assert ours.confirmed
    assert ours.confirmation == theirs.confirmation
    assert ours.decision.chosen.configuration == theirs.decision.chosen.configuration
    assert "run to the end" in ours.decision.reasons[0]
    assert loader.find_answer(MODEL, Options(), 16.0) is not None


def test_it_is_decided_again_for_the_memory_there_is_here_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what was run there doesn't fit, the best that does is predicted, and no longer passes for confirmed."""
    theirs = measured_elsewhere(confirmed_of(on_cpu()))
    (use,) = theirs.decision.chosen.predicted.memory
    host = twin_of(on_cpu().host)
    usable = replace(host.memory, usable_bytes=int(use.total_bytes))  # of which a part must stay free
    become(replace(host, memory=usable), tmp_path, monkeypatch)
    (imported,) = import_(file_of(theirs, tmp_path / "theirs.json", Options().request(16.0)))
    ours = imported.result
    (now,) = ours.decision.chosen.predicted.memory
    assert now.total_bytes <= now.available_bytes < use.total_bytes
    assert not ours.confirmed
    assert ours.confirmation is not None
    assert theirs.confirmation is not None
    assert ours.confirmation.runs == theirs.confirmation.runs
    assert loader.find_answer(MODEL, Options(), 16.0) is None
    assert loader.find_answer(MODEL, Options(confirm=False), 16.0) is not None


def test_a_host_that_lacks_the_memory_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names the file, and an empty cache."""
    host = twin_of(on_cpu().host)
    become(replace(host, memory=replace(host.memory, usable_bytes=10**8)), tmp_path, monkeypatch)
    with pytest.raises(MemoryLimitError, match=r"^nothing was imported from .*theirs\.json: .*bitnet-b1\.58-2B-4T"):
        import_(file_of(measured_elsewhere(), tmp_path / "theirs.json"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("replayed", [on_gpu, hybrid])
def test_results_with_gpus_are_adopted_by_hosts_with_the_same(
    replayed: Callable[[], Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the GPUs' UUIDs are; not by a host whose driver is of another major version."""
    theirs = measured_elsewhere(replayed())
    here = twin_of(theirs.host)
    ours = adopt(theirs, here)
    assert ours.device_config == theirs.device_config
    assert ours.decision.split_curve == theirs.decision.split_curve
    newer = replace(here, gpus=replace(here.gpus, driver_version="999.1"))
    with pytest.raises(StoreError, match="hardware class"):
        adopt(theirs, newer)


def test_a_result_of_another_class_is_refused(here: Host, tmp_path: Path) -> None:
    """One sentence names both classes; nothing is changed, unless it is asked for as it is, for hosts like that."""
    theirs = measured_elsewhere()
    odd = replace(theirs, host=replace(theirs.host, limits=replace(theirs.host.limits, usable_threads=1)))
    path = file_of(odd, tmp_path / "odd.json")
    with pytest.raises(StoreError, match=r"^nothing was imported from .*odd\.json: .*--as-is") as caught:
        import_(path)
    assert hardware_class(odd.host) in str(caught.value)
    assert hardware_class(here) in str(caught.value)
    assert not (tmp_path / "cache").exists()
    (imported,) = import_(path, as_is=True)
    assert imported.path is not None
    assert Path(imported.path).read_bytes() == Path(path).read_bytes()
    assert saved_here() is None


def test_another_architecture_is_just_another_class(here: Host, tmp_path: Path) -> None:
    """No more is said about it."""
    theirs = measured_elsewhere()
    arm = replace(theirs, host=replace(theirs.host, cpu=replace(theirs.host.cpu, architecture="aarch64")))
    with pytest.raises(StoreError, match="hardware class"):
        import_(file_of(arm, tmp_path / "arm.json"))


def test_what_was_decided_from_a_recording_does_not_become_a_measurement(here: Host, tmp_path: Path) -> None:
    """A replay, whose times may be made up, would pass for what an equal host measured; it never outdoes such a one."""
    theirs = measured_elsewhere()
    replayed = replace(theirs, provenance="replayed", created_at="2099-01-01T00:00:00+00:00")
    path = file_of(replayed, tmp_path / "fleet" / "replayed.json")
    for source in (path, str(tmp_path / "fleet")):
        with pytest.raises(StoreError, match=r"^nothing was imported from .*: the result was decided from a recording"):
            import_(source)
    assert saved_here() is None
    file_of(theirs, tmp_path / "fleet" / "theirs.json")
    (imported,) = import_(str(tmp_path / "fleet"))
    assert imported.result.origin is not None
    assert imported.result.origin.measured_at == theirs.created_at


def test_this_host_s_own_result_is_taken_as_it_is(here: Host, tmp_path: Path) -> None:
    """Byte for byte, and it still counts as measured here."""
    ours = replace(on_cpu(), provenance="measured", host=here)
    path = file_of(ours, tmp_path / "ours.json")
    (imported,) = import_(path)
    assert imported.path is not None
    assert Path(imported.path).read_bytes() == Path(path).read_bytes()
    assert imported.result.provenance == "measured"


def test_an_imported_result_that_is_exported_again_keeps_its_origin(here: Host, tmp_path: Path) -> None:
    """However many hosts it passes through."""
    second = replace(adopt(measured_elsewhere(), here), host=twin_of(here, "3" * 32))
    (imported,) = import_(file_of(second, tmp_path / "second.json"))
    assert imported.result.origin is not None
    assert imported.result.origin.host_label == measured_elsewhere().host.label


def without(document: Any, names: set[str]) -> Any:
    """JSON values without some fields, wherever they are."""
    if isinstance(document, dict):
        return {name: without(value, names) for name, value in document.items() if name not in names}
    return [without(value, names) for value in document] if isinstance(document, list) else document


def test_a_file_of_the_first_schema_version_is_adopted(here: Host, tmp_path: Path) -> None:
    """It has no hardware class; that follows from the host that it holds."""
    theirs = measured_elsewhere()
    key, raw = cache.document(theirs, WISH)
    entry = parse(raw, "")
    older = without(msgspec.json.decode(entry.result_json), {"hardware_class", "smaller", "origin", "check"})
    body = encode(key, entry.request_json, entry.device_config_json, msgspec.json.encode(older)).split(b"\n", 2)[2]
    (tmp_path / "old.json").write_bytes(seal("bitnet-autotune-result", 1, body))
    (imported,) = import_(str(tmp_path / "old.json"))
    assert imported.result.device_config == theirs.device_config


def test_other_software_is_no_obstacle_but_is_told(here: Host, tmp_path: Path) -> None:
    """When it is imported and with the result: what differs, and what to do."""
    theirs = measured_elsewhere()
    versions = replace(
        theirs.host.versions,
        libraries={**theirs.host.versions.libraries, "numpy": "0.9"},
        kernels="0" * 32,
        measuring_policy=0,
    )
    path = file_of(replace(theirs, host=replace(theirs.host, versions=versions)), tmp_path / "theirs.json")
    numpy = here.versions.libraries["numpy"]
    told = f"(numpy 0.9 there, {numpy} here, the kernels' sources, the way of measuring): `autotune confirm`"
    with pytest.warns(AdoptionWarning, match=re.escape(told)):
        (imported,) = import_(path)
    assert told in imported.result.warnings[-1]


def test_what_is_doubtful_stays_so_whatever_is_decided_from_it_and_wherever_it_goes(here: Host) -> None:
    """The software that measured it is what counts, not that of a host that imported it in between."""
    theirs = measured_elsewhere()
    older = replace(theirs.host.versions, libraries={**theirs.host.versions.libraries, "numpy": "0.9"})
    measured = replace(theirs, host=replace(theirs.host, versions=older))
    told = f"measured on {theirs.host.label} with other software than here (numpy 0.9 there, "
    with pytest.warns(AdoptionWarning):
        second = adopt(measured, here)
    chat = conclude_again(second, make_workload("chat", second.model), here)
    assert chat.warnings[-1].startswith(told)
    third = twin_of(here, "3" * 32)
    with pytest.warns(AdoptionWarning, match=re.escape(told)):
        assert adopt(second, third).warnings[-1].startswith(told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adopt(second, replace(third, versions=older)).warnings == on_cpu().warnings[1:]


def test_a_kernel_that_cannot_run_here_is_told(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llvmlite is missing, for example, equal hardware is as slow as numpy."""
    lacking = [
        replace(kernel, reason="llvmlite is not installed") if kernel.kernel == "native" else kernel
        for kernel in on_cpu().campaign.kernels
        if kernel.kernel != "amx"
    ]
    monkeypatch.setattr(adoption, "find_kernels", lambda host: lacking)
    with pytest.warns(AdoptionWarning) as caught:
        ours = adopt(measured_elsewhere(), here)
    told = [str(warning.message) for warning in caught]
    assert any(re.search("kernel native for I2_S, which can't run here: llvmlite is not", text) for text in told)
    assert any(re.search("kernel amx for I2_S, which can't run here: this version doesn't", text) for text in told)
    assert tuple(told) == ours.warnings[-len(told) :]


# Folders


def test_of_a_folder_all_of_this_host_s_class_are_taken(here: Host, tmp_path: Path) -> None:
    """Those of other classes and other files stay where they are."""
    fleet = tmp_path / "fleet"
    for workload in ("server", "chat"):
        file_of(measured_elsewhere(on_cpu(workload)), fleet / f"{workload}.json")
    file_of(replace(on_gpu(), provenance="measured"), fleet / "laptop.json")
    (fleet / "notes.json").write_text("{}")
    found = import_(str(fleet))
    assert sorted(imported.result.workload.name for imported in found) == ["chat", "server"]
    assert saved_here(workload="chat") is not None
    assert len(list(manage.list_entries())) == 2
    assert len(import_(str(fleet), as_is=True)) == 3


def test_a_folder_without_this_host_s_class_names_those_that_it_has(here: Host, tmp_path: Path) -> None:
    """And this host's; with an empty one, that it is empty."""
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    with pytest.raises(ResultNotFoundError, match="but no saved result at all"):
        import_(str(fleet))
    with pytest.raises(ResultNotFoundError, match="holds no saved result"):
        import_(str(fleet), as_is=True)
    file_of(on_gpu(), fleet / "laptop.json")
    with pytest.raises(ResultNotFoundError) as caught:
        import_(str(fleet))
    assert f"this host's hardware class {hardware_class(here)}" in str(caught.value)
    assert f"1 of {hardware_class(on_gpu().host)}" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_of_several_for_one_model_the_best_known_counts(here: Host, tmp_path: Path) -> None:
    """One that was run before one that wasn't, then the latest; whatever their files are called."""
    fleet = tmp_path / "fleet"
    theirs = measured_elsewhere()
    for name, label, created_at in (("a", "late", "2026-03-01T00:00:00+00:00"), ("b", "early", "2026-01-01T00:00:00")):
        host = replace(theirs.host, label=label)
        file_of(replace(theirs, host=host, created_at=created_at), fleet / f"{name}.json")
    (imported,) = import_(str(fleet))
    assert imported.result.origin is not None
    assert imported.result.origin.host_label == "late"
    file_of(confirmed_of(replace(theirs, created_at="2025-01-01T00:00:00+00:00")), fleet / "c.json")
    (imported,) = import_(str(fleet))
    assert imported.result.confirmed


def test_what_this_host_measured_itself_stays(here: Host, tmp_path: Path) -> None:
    """A folder that is imported whenever a host starts doesn't undo a tuning; a file that is named does."""
    ours = replace(on_cpu(), provenance="measured", host=here, created_at="2026-02-01T00:00:00+00:00")
    before = cache.write(ours, WISH)
    path = file_of(replace(measured_elsewhere(), created_at="2026-03-01T00:00:00+00:00"), tmp_path / "fleet" / "a.json")
    assert import_(str(tmp_path / "fleet")) == [adoption.Imported(None, ours)]
    assert Path(before).read_bytes() == cache.document(ours, WISH)[1]
    assert import_(path)[0].result.provenance == "imported"


def test_what_this_host_measured_later_replaces_what_it_measured_before(here: Host, tmp_path: Path) -> None:
    """As after its cache was restored from an image."""
    ours = replace(on_cpu(), provenance="measured", host=here, created_at="2026-02-01T00:00:00+00:00")
    cache.write(ours, WISH)
    later = replace(ours, created_at="2026-03-01T00:00:00+00:00")
    file_of(later, tmp_path / "fleet" / "later.json")
    (imported,) = import_(str(tmp_path / "fleet"))
    assert imported.path is not None
    assert imported.result == later


def test_a_result_that_cannot_be_adopted_does_not_keep_the_others_from_it(
    here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out with a warning; where there is no other, that is the error."""
    fleet = tmp_path / "fleet"
    file_of(measured_elsewhere(), fleet / "a.json")
    file_of(measured_elsewhere(on_cpu("chat")), fleet / "b.json")
    again = adoption.conclude_again

    def short_of_memory(saved: Result, workload: Any, host: Host) -> Result:
        if workload.name == "chat":
            raise MemoryLimitError("it does not fit")
        return again(saved, workload, host)

    monkeypatch.setattr(adoption, "conclude_again", short_of_memory)
    with pytest.warns(AdoptionWarning, match=r"left out a result in .*fleet: .*b\.json: it does not fit"):
        (imported,) = import_(str(fleet))
    assert imported.result.workload.name == "server"
    (fleet / "a.json").unlink()
    with pytest.raises(MemoryLimitError, match="it does not fit"):
        import_(str(fleet))


def test_another_decision_from_an_imported_result_is_as_imported(here: Host, tmp_path: Path) -> None:
    """Its measurements are still another host's, whatever is decided from them."""
    (imported,) = import_(file_of(measured_elsewhere(), tmp_path / "theirs.json"))
    chat = make_workload("chat", imported.result.model)
    again = conclude_again(imported.result, chat, here)
    assert (again.provenance, again.origin) == ("imported", imported.result.origin)
    assert conclude_again(on_cpu(), chat, here).provenance == "measured"
