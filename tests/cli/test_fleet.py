"""A fleet as its owner runs it: export here, import there, confirm; a model that was really tuned on this host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from autotune import cli, recheck
from autotune.errors import StoreError
from autotune.host.hardware_class import hardware_class
from autotune.records import Check, Fingerprint, Host, Measured, PartRun, Phase, Result, part_of
from autotune.store import cache
from autotune.store.entry import parse
from autotune.store.schema import decode_result
from tests.builders import build_confirmation
from tests.cli.shop import Answer, Shop, assert_one_sentence


def saved_in(shop: Shop) -> Result:
    """The only result in a shop's cache."""
    (path,) = shop.entries()
    return decode_result(parse(path.read_bytes(), str(path)))


def twin_of(host: Host) -> Host:
    """An equal host with another name and other numbers."""
    cores = tuple(replace(core, cpus=tuple(cpu + 64 for cpu in core.cpus)) for core in host.cpu.cores)
    return replace(host, label="twin", cpu=replace(host.cpu, cores=cores), fingerprint=Fingerprint("f" * 32, "2" * 32))


def keep(shop: Shop, result: Result) -> Path:
    """Put a result into a shop's cache, for the wish that its result is for; all others go."""
    (path,) = shop.entries()
    request = parse(path.read_bytes(), str(path)).request
    shutil.rmtree(shop.cache)
    key, raw = cache.document(result, {**request, "confirm": result.confirmed})
    target = Path(key.path_in(str(shop.cache)))
    target.parent.mkdir(parents=True)
    target.write_bytes(raw)
    return target


def as_if_run(result: Result, factor: float) -> Result:
    """As if the choice had been run and had taken a multiple of the predicted time: no such run took place."""
    configuration, workload = result.decision.chosen.configuration, result.workload
    predicted = result.decision.chosen.predicted
    phases: tuple[tuple[Phase, float], ...] = ("decode", predicted.tpot_s), ("prefill", predicted.ttft_s)
    runs = tuple(
        PartRun(part_of(configuration, workload, phase), (factor * time_s,) * 8, {"cpu": (factor * time_s,) * 8})
        for phase, time_s in phases
    )
    confirmation = build_confirmation(workload, configuration, configuration)
    assert confirmation.chosen is not None
    chosen = replace(
        confirmation.chosen,
        tokens_per_s=predicted.tokens_per_s / factor,
        tpot_s=factor * predicted.tpot_s,
        ttft_s=factor * predicted.ttft_s,
    )
    return replace(result, confirmation=replace(confirmation, runs=runs, chosen=chosen))


@pytest.fixture
def fleet(shop: Shop) -> Shop:
    """A shop whose cache is empty and whose folder ``fleet`` holds what an equal host exported."""
    ours = saved_in(shop)
    theirs = keep(shop, replace(ours, host=twin_of(ours.host)))
    (shop.folder / "fleet").mkdir()
    shutil.move(theirs, shop.folder / "fleet" / "theirs.json")
    shutil.rmtree(shop.cache)
    return shop


def test_a_folder_holds_one_file_per_hardware_class(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """Named by class, model and workload; exported again it replaces the first."""
    ours = hardware_class(saved_in(shop).host)
    for _ in range(2):
        exported = shop.run("cache", "export", "small.json", "fleet/")
        assert (exported.code, exported.out) == (0, b"")
    (path,) = (shop.folder / "fleet").iterdir()
    assert path.name == f"{ours}.small.server.json"
    assert f"wrote fleet/{path.name}\n" == exported.err
    assert path.read_bytes() == tuned[1].out


def test_an_export_does_not_replace_the_model(shop: Shop) -> None:
    """As with the words in the wrong order."""
    before = shop.state()
    assert_one_sentence(shop.run("cache", "export", "small.json", "./small.json"), 2)
    assert shop.state() == before


@pytest.mark.parametrize("source", ["fleet", "fleet/theirs.json"])
def test_an_equal_host_s_result_is_used_at_once(fleet: Shop, source: str) -> None:
    """By the same command without timing anything, marked as imported, and listed with its class."""
    imported = fleet.run("cache", "import", source)
    assert (imported.code, imported.out) == (0, b"")
    assert "small, server, measured on twin, " in imported.err
    before = fleet.state()
    answer = fleet.run("small.json", "--budget", "4", "--no-confirm", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.result.provenance == "imported"
    assert fleet.state() == before
    (listed,) = fleet.run("cache", "list", "--json").document
    assert listed["provenance"] == "imported"
    assert listed["origin"]["host_label"] == "twin"
    assert listed["hardware_class"] == answer.result.host.fingerprint.hardware_class
    assert f"imported {listed['hardware_class']}" in " ".join(fleet.run("cache", "list").err.split())


def test_a_result_of_another_class_needs_to_be_asked_for_as_it_is(fleet: Shop) -> None:
    """Else one sentence, exit code 8 for a file and 9 for a folder without anything for this host."""
    path = fleet.folder / "fleet" / "theirs.json"
    entry = parse(path.read_bytes(), "")
    theirs = decode_result(entry)
    odd = replace(theirs, host=replace(theirs.host, cpu=replace(theirs.host.cpu, name="Another CPU")))
    path.write_bytes(cache.document(odd, entry.request)[1])
    assert_one_sentence(fleet.run("cache", "import", "fleet/theirs.json"), 8)
    refused = fleet.run("cache", "import", "fleet")
    assert_one_sentence(refused, 9)
    assert hardware_class(odd.host) in refused.err
    assert not fleet.cache.exists()
    assert fleet.run("cache", "import", "fleet", "--as-is").code == 0
    assert saved_in(fleet) == odd


# autotune confirm


def test_a_check_is_printed_and_saved_with_the_result(shop: Shop) -> None:
    """A planted expectation of a hundredth of the speed: it holds, and tuning anew may pay."""
    planted = as_if_run(saved_in(shop), 100.0)
    keep(shop, planted)
    answer = shop.run("confirm", "small.json", "--budget", "2", "--json")
    assert answer.code == 0, answer.err
    check = msgspec.convert(answer.document, Check)
    assert check.holds
    assert planted.confirmation is not None
    assert check.expected == planted.confirmation.chosen
    assert check.found.tpot_s < check.expected.tpot_s
    assert saved_in(shop) == replace(planted, check=check)
    told = shop.run("confirm", "small.json", "--budget", "1")
    assert (told.code, told.out) == (0, b"")
    assert "tuning anew may find something better" in " ".join(told.err.split())


def test_figures_that_no_longer_hold_have_an_exit_code_of_their_own(shop: Shop) -> None:
    """A planted expectation of 100 times the speed: exit code 11 and the command that tunes anew; the check is kept.

    It tunes for the same wish: without its limits another result would take this one's place.
    """
    path = keep(shop, as_if_run(saved_in(shop), 0.01))
    entry = parse(path.read_bytes(), "")
    path.write_bytes(cache.document(decode_result(entry), {**entry.request, "max_ttft_ms": 60000.0})[1])
    answer = shop.run("confirm", "small.json", "--budget", "2", "--json")
    assert answer.code == 11
    assert not answer.document["holds"]
    assert answer.err.startswith("autotune: small, server: ")
    assert "no longer holds" in answer.err
    assert answer.err.endswith("`python -m autotune tune small.json --workload server --max-ttft-ms 60000.0 --force`\n")
    check = saved_in(shop).check
    assert check is not None
    assert not check.holds


def test_a_file_is_checked_and_left_as_it_is(shop: Shop) -> None:
    """As a CI job does with a record of its own kind of host; of another kind there is nothing to compare with."""
    planted = as_if_run(saved_in(shop), 0.01)
    path = keep(shop, replace(planted, host=twin_of(planted.host)))
    record = shop.folder / "record.json"
    shutil.move(path, record)
    before = record.read_bytes()
    answer = shop.run("confirm", "record.json", "--budget", "2")
    assert answer.code == 11
    assert "tune the model anew" in answer.err
    entry = parse(before, "")
    cpu = replace(planted.host.cpu, name="Another CPU")
    record.write_bytes(cache.document(replace(planted, host=replace(planted.host, cpu=cpu)), entry.request)[1])
    assert_one_sentence(shop.run("confirm", "record.json"), 8)
    assert shop.entries() == []


def test_what_confirm_refuses(shop: Shop) -> None:
    """One sentence and its exit code; nothing is changed."""
    before = shop.state()
    shop.write("other.json", {**json.loads(shop.model.read_text()), "num_hidden_layers": 3})
    for arguments, code in (
        (("confirm", "other.json"), 9),
        (("confirm", "missing.json"), 3),
        (("confirm", "small.json", "--budget", "0"), 2),
        (("confirm", "small.json", "--budget", "nan"), 2),
        (("confirm", "small.json", "--budget", "0.1"), 6),
    ):
        assert_one_sentence(shop.run(*arguments), code)
    assert shop.state() == before


def test_a_check_does_not_undo_a_tune_that_ended_meanwhile(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What was saved while it ran stays; the check is of what was there before, and only printed."""
    measured = Measured(tokens_per_s=10.0, tpot_s=0.1, ttft_s=1.0, relative_interval=0.01)
    check = Check("2026-01-01T00:00:00+00:00", 4.0, measured, measured, 0.05, holds=True)
    monkeypatch.chdir(shop.folder)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(shop.cache))

    def meanwhile(saved: Result, **_: object) -> Result:
        keep(shop, replace(saved, created_at="2099-01-01T00:00:00+00:00"))
        return replace(saved, check=check)

    monkeypatch.setattr(recheck, "recheck", meanwhile)
    assert cli.main(["confirm", "small.json", "--json"]) == 8
    out, err = capsysbinary.readouterr()
    assert msgspec.json.decode(out, type=Check) == check
    assert err == b"autotune: warning: the check was not saved: what it is about was replaced meanwhile\n"
    assert (saved_in(shop).created_at, saved_in(shop).check) == ("2099-01-01T00:00:00+00:00", None)


def test_a_check_that_cannot_be_saved_is_still_printed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """With exit code 8 and a warning that says why; the regression, if there is one, comes first."""
    measured = Measured(tokens_per_s=10.0, tpot_s=0.1, ttft_s=1.0, relative_interval=0.01)
    check = Check("2026-01-01T00:00:00+00:00", 4.0, measured, measured, 0.05, holds=True)
    worse = replace(check, found=replace(measured, tokens_per_s=8.0), holds=False)
    monkeypatch.chdir(shop.folder)
    monkeypatch.setenv("AUTOTUNE_CACHE", str(shop.cache))
    before = shop.state()

    def refused(*_: object) -> str:
        raise StoreError("the disk is full")

    monkeypatch.setattr(cache, "write", refused)
    for found, code in ((check, 8), (worse, 11)):
        monkeypatch.setattr(recheck, "recheck", lambda saved, found=found, **_: replace(saved, check=found))
        assert cli.main(["confirm", "small.json", "--json"]) == code
        out, err = capsysbinary.readouterr()
        assert msgspec.json.decode(out, type=Check) == found
        assert err.startswith(b"autotune: warning: the disk is full\n")
    assert b"25.0% slower" in err
    assert shop.state() == before
