from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from autotune.errors import StoreError
from autotune.records import GpuRun, Measurement
from autotune.records.host import Gpu, Gpus
from autotune.store import recording
from autotune.store.recording import Recording
from tests.builders import build_campaign, build_host
from tests.store.conftest import permissions_bind

RECORDING = Recording(
    recorded_at="2026-01-02T03:04:05+00:00",
    synthetic=True,
    note="made up for this test",
    host=build_host(),
    campaigns=(build_campaign(), build_campaign(points=5)),
)
OTHER = replace(RECORDING, note="another one", campaigns=())


def written(folder: Path) -> Path:
    path = folder / "host.json"
    recording.write(path, RECORDING)
    return path


def refusal(path: Path) -> str:
    """The sentence that reading a file ends with."""
    with pytest.raises(StoreError) as caught:
        recording.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Writing and reading


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    """Also with no measurements at all, which is a host that was only detected."""
    path = written(tmp_path)
    assert recording.read(path) == RECORDING
    recording.write(str(path), OTHER)
    assert recording.read(str(path)) == OTHER
    assert [left.name for left in tmp_path.iterdir()] == ["host.json"]


def test_a_file_says_first_what_it_is(tmp_path: Path) -> None:
    """So that people and other programs recognise it, and one line holds it."""
    raw = written(tmp_path).read_bytes()
    assert raw.startswith(b'{"format":"bitnet-autotune recording","version":2,"recorded_at":')
    assert raw.count(b"\n") == 1


def test_a_name_without_a_folder_is_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users give it."""
    monkeypatch.chdir(tmp_path)
    recording.write("host.json", RECORDING)
    assert recording.read("host.json") == RECORDING


def test_what_a_link_names_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    """A link into a shared folder stays one."""
    (tmp_path / "shared").mkdir()
    real, link = tmp_path / "shared" / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    recording.write(link, RECORDING)
    assert link.is_symlink()
    assert recording.read(real) == RECORDING
    assert [left.name for left in real.parent.iterdir()] == ["real.json"]


def test_an_indented_recording_is_read_too(tmp_path: Path) -> None:
    """It is ordinary JSON, which people reformat to look at it."""
    path = written(tmp_path)
    path.write_bytes(msgspec.json.format(path.read_bytes(), indent=2))
    assert recording.read(path) == RECORDING


# What can't be written


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Neither half of the new one nor a temporary file stays behind."""
    path = written(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with permissions_bind(), pytest.raises(StoreError, match=r"host\.json: .* can't be written: Permission denied"):
            recording.write(path, OTHER)
    finally:
        tmp_path.chmod(0o700)
    assert recording.read(path) == RECORDING
    assert [left.name for left in tmp_path.iterdir()] == ["host.json"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is noticed when the bytes are flushed to it."""
    path = written(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"host\.json: .* can't be written: No space left on device"):
        recording.write(path, OTHER)
    assert recording.read(path) == RECORDING
    assert [left.name for left in tmp_path.iterdir()] == ["host.json"]


def test_a_recording_without_a_folder_to_put_it_in_is_refused(tmp_path: Path) -> None:
    """No folder is made: the user may have mistyped it."""
    with pytest.raises(StoreError, match=r"nowhere/host\.json: .* can't be written: No such file or directory"):
        recording.write(tmp_path / "nowhere" / "host.json", RECORDING)
    with pytest.raises(StoreError, match="can't be written: Is a directory"):
        recording.write(tmp_path, RECORDING)
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    """An infinite time would come back as null."""
    path = written(tmp_path)
    point = build_campaign().outcomes[0].point
    endless = build_campaign(outcomes=(Measurement(point, (math.inf,), 1, "stable"),))
    with pytest.raises(StoreError, match=r"host\.json: the recording was not written, it could not be read back"):
        recording.write(path, replace(RECORDING, campaigns=(endless,)))
    assert recording.read(path) == RECORDING


def test_a_place_that_takes_no_file_is_found_out_before_measuring(tmp_path: Path) -> None:
    """A missing folder, or a folder in the file's place; and nothing is left there."""
    recording.check_writable(tmp_path / "new.json")
    recording.check_writable(written(tmp_path))
    for place in (tmp_path / "nowhere" / "host.json", tmp_path):
        with pytest.raises(StoreError, match="can't be written: expected a file in a folder that can be") as caught:
            recording.check_writable(place)
        assert str(caught.value).startswith(f"{place}: ")
    assert [left.name for left in tmp_path.iterdir()] == ["host.json"]


@pytest.mark.parametrize("content", [b"{}", b"", b"hidden_size: 1"])
def test_what_is_no_recording_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    """A model's file whose name was given in place of a new one is still there, and so is a device."""
    path = tmp_path / "model.json"
    path.write_bytes(content)
    for place in (path, Path("/dev/null")):
        with pytest.raises(StoreError, match="would replace what is no recording: expected a new name"):
            recording.check_writable(place)
    assert path.read_bytes() == content


# What can't be read


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """And a path through a file, and a folder."""
    path = written(tmp_path)
    assert refusal(tmp_path / "other.json").endswith("can't be read: No such file or directory")
    assert refusal(path / "below").endswith("can't be read: Not a directory")
    assert refusal(tmp_path).endswith("but it is not a regular file")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    path = written(tmp_path)
    path.chmod(0)
    with permissions_bind():
        assert refusal(path).endswith("can't be read: Permission denied")


@pytest.mark.parametrize("left", [0, 1, 20, 40, 500, -2])
def test_a_torn_file_is_called_one(tmp_path: Path, left: int) -> None:
    """Wherever it was cut, short of its last byte."""
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    assert "is cut short or damaged" in refusal(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x7fELF\x00\xff",
        b"[]",
        b'"text"',
        b"{}",
        b'{"format":3,"version":1}',
        b'{"format":"x","version":"1"}',
        b"null",
    ],
)
def test_a_foreign_file_is_called_one(tmp_path: Path, raw: bytes) -> None:
    """Whether it is JSON or not."""
    path = tmp_path / "foreign.json"
    path.write_bytes(raw)
    assert "is something else" in refusal(path)


def test_a_saved_result_is_no_recording(tmp_path: Path) -> None:
    """It is told by its format."""
    path = tmp_path / "result.json"
    path.write_bytes(b'{"format":"bitnet-autotune-result","version":1}')
    assert "is something else: its format is 'bitnet-autotune-result'" in refusal(path)


@pytest.mark.parametrize(("version", "age"), [(3, "a newer"), (0, "an older")])
def test_another_version_is_named_with_the_one_that_is_read(tmp_path: Path, version: int, age: str) -> None:
    """Whatever else such a file holds."""
    path = tmp_path / "other.json"
    path.write_bytes(msgspec.json.encode({"format": recording.FORMAT, "version": version, "more": [1]}))
    assert refusal(path).endswith(f"has version {version}, written by {age} autotune; this one reads up to version 2")


def test_fields_that_do_not_fit_the_records_are_named(tmp_path: Path) -> None:
    """A measurement without samples, a field from nowhere."""
    path = written(tmp_path)
    whole = msgspec.json.decode(path.read_bytes())
    for changed, named in (
        ({**whole, "host": {}}, "$.host"),
        ({**whole, "surprise": 1}, "surprise"),
        ({**whole, "campaigns": [{**whole["campaigns"][0], "cold_bytes": None}]}, "$.campaigns[0].cold_bytes"),
    ):
        path.write_bytes(msgspec.json.encode(changed))
        message = refusal(path)
        assert "holds what this autotune can't read" in message
        assert named in message


@pytest.mark.parametrize(
    ("samples_s", "said"),
    [
        ([], "expected samples, got none"),
        ([1e-3, 0.0], "expected samples of 1e-12 to 1e+06 s, got 0"),
        ([-1e-3], "expected samples of 1e-12 to 1e+06 s, got -0.001"),
        ([1e300], "expected samples of 1e-12 to 1e+06 s, got 1e+300"),
    ],
)
def test_times_that_cannot_be_are_refused_where_they_stand(tmp_path: Path, samples_s: list[float], said: str) -> None:
    """Nothing could be predicted from them."""
    path = written(tmp_path)
    whole = msgspec.json.decode(path.read_bytes())
    whole["campaigns"][1]["outcomes"][2]["samples_s"] = samples_s
    path.write_bytes(msgspec.json.encode(whole))
    assert refusal(path).endswith(f"holds what no benchmark writes: {said} - at `$.campaigns[1].outcomes[2]`")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 0}, "expected threads of at least 1 for matmul, got 0"),
        ({"m": 0}, "expected m of at least 1 for matmul, got 0"),
        ({"n_out": -8}, "expected n_out of at least 1 for matmul, got -8"),
        ({"op": "read", "k_in": 0}, "expected k_in of at least 1 for read, got 0"),
        ({"format": "I3_S"}, "expected a matrix in a weight format that can hold it, got I3_S 256 x 256"),
        ({"k_in": 77}, "expected a matrix in a weight format that can hold it, got I2_S 256 x 77"),
    ],
)
def test_points_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    """As sizes of nothing, and matrices that no format holds."""
    path = written(tmp_path)
    whole = msgspec.json.decode(path.read_bytes())
    point = {"op": "matmul", "device": "cpu", "kernel": "native", "threads": 1, "m": 1}
    point |= {"format": "I2_S", "n_out": 256, "k_in": 256}
    whole["campaigns"][0]["outcomes"][0]["point"] = point
    path.write_bytes(msgspec.json.encode(whole))
    assert recording.read(path)
    point |= changes
    path.write_bytes(msgspec.json.encode(whole))
    assert said in refusal(path)


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:1",), ()])
def test_a_gpu_that_the_host_does_not_have_cannot_have_been_timed(tmp_path: Path, devices: tuple[str, ...]) -> None:
    """Nor no GPU at all: what it says of memory and identical ones would be about nothing."""
    campaign = replace(build_campaign(), gpus=(GpuRun(devices, None),))
    with pytest.raises(StoreError, match=r"expected usable GPUs of its host \(none\), got (cuda:\d|none) - at `\$"):
        recording.write(tmp_path / "host.json", replace(RECORDING, campaigns=(campaign,)))


def test_a_host_without_threads_is_refused(tmp_path: Path) -> None:
    """There would be nothing to choose from."""
    path = written(tmp_path)
    whole = msgspec.json.decode(path.read_bytes())
    whole["host"]["limits"]["usable_threads"] = 0
    path.write_bytes(msgspec.json.encode(whole))
    assert "expected at least one usable thread, got 0" in refusal(path)


def test_gpus_that_the_host_has_may_have_been_timed_in_any_order(tmp_path: Path) -> None:
    """Of identical ones the one with the most free memory comes first."""
    gpu = Gpu(0, "Made-up GPU", None, None, None, None, mig=False, unusable_reason=None)
    host = build_host(gpus=Gpus((gpu, replace(gpu, index=1)), None, None))
    campaign = replace(build_campaign(), gpus=(GpuRun(("cuda:1", "cuda:0"), "no CUDA-capable device is detected"),))
    written_recording = replace(RECORDING, host=host, campaigns=(campaign,))
    recording.write(tmp_path / "host.json", written_recording)
    assert recording.read(tmp_path / "host.json") == written_recording
