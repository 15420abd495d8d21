from __future__ import annotations

import hashlib
import json
from typing import get_args

import pytest

from autotune.records.configuration import WorkloadName
from autotune.store.entry import OLDEST_VERSION, SCHEMA_VERSION, WORKLOADS, Key, encode, parse
from autotune.store.seal import BadEntry
from tests.builders import HOST_FINGERPRINT, MODEL_DIGEST

KEY = Key(HOST_FINGERPRINT, MODEL_DIGEST, "server")
REQUEST = b'{"workload":"server","budget_s":null}'
DEVICE_CONFIG = b'{"strategy":"CpuOnly"}'
RESULT = '{"model":"Größe \\n 模型"}'.encode()
RAW = encode(KEY, REQUEST, DEVICE_CONFIG, RESULT)


def with_checksum(body: bytes) -> bytes:
    """A document whose checksum fits whatever its body is."""
    checksum = hashlib.sha256(body).hexdigest()
    return f'{{"format":"bitnet-autotune-result","schema_version":1,\n"checksum":"sha256:{checksum}",\n'.encode() + body


def refusal(raw: bytes) -> BadEntry:
    with pytest.raises(BadEntry) as caught:
        parse(raw, "somewhere.json")
    return caught.value


def test_what_was_encoded_comes_back_part_by_part() -> None:
    """Parts are the very bytes that went in."""
    entry = parse(RAW, "somewhere.json")
    assert entry.key == KEY
    assert (entry.request_json, entry.device_config_json, entry.result_json) == (REQUEST, DEVICE_CONFIG, RESULT)
    assert entry.request == {"workload": "server", "budget_s": None}
    assert (entry.raw, entry.path) == (RAW, "somewhere.json")


def test_any_json_parser_reads_the_document() -> None:
    """Loaders in other languages need nothing but JSON, and find device_config at the top level."""
    document = json.loads(RAW)
    assert list(document) == [
        "format",
        "schema_version",
        "checksum",
        "key",
        "request",
        "device_config",
        "result",
    ]
    assert document["key"] == {"host": KEY.host, "model": KEY.model, "workload": "server"}
    assert document["device_config"] == {"strategy": "CpuOnly"}
    assert document["result"] == {"model": "Größe \n 模型"}


def test_the_checksum_is_that_of_the_bytes_below_its_line() -> None:
    """`tail -n +3 FILE | sha256sum` verifies a file by hand."""
    checksum_line, body = RAW.split(b"\n", 2)[1:]
    assert checksum_line == b'"checksum":"sha256:' + hashlib.sha256(body).hexdigest().encode() + b'",'


def test_every_truncation_is_noticed() -> None:
    """A file that is cut short anywhere, to nothing included, is torn."""
    assert {refusal(RAW[:length]).kind for length in range(len(RAW))} == {"torn"}


def test_every_damaged_byte_is_noticed() -> None:
    """One flipped bit anywhere, envelope and checksum included, makes a bad entry."""
    for position in range(len(RAW)):
        damaged = bytearray(RAW)
        damaged[position] ^= 1
        refusal(bytes(damaged))


def test_a_tail_is_noticed() -> None:
    """What a longer entry left behind the end isn't part of the document."""
    assert refusal(RAW + b"}\n").kind == "checksum"


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION + 1, "a newer"), (OLDEST_VERSION - 1, "an older")])
def test_another_schema_version_is_refused_by_name(version: int, age: str) -> None:
    """The reader learns which autotune wrote it, also where everything below the first line is different."""
    raw = b'{"format":"bitnet-autotune-result","schema_version":%d,\nanything' % version
    bad = refusal(raw)
    assert bad.kind == "schema"
    assert f"schema version {version}, written by {age} autotune" in str(bad)


def test_the_version_before_is_still_read() -> None:
    """What was added since has defaults."""
    older = parse(RAW.replace(b'"schema_version":%d' % SCHEMA_VERSION, b'"schema_version":%d' % OLDEST_VERSION), "")
    assert (older.key, older.result_json) == (parse(RAW, "").key, parse(RAW, "").result_json)


@pytest.mark.parametrize(
    "raw", [b"null\n", b"\0" * 4096, b"GGUF\3\0\0\0", json.dumps(json.loads(RAW), indent=2).encode()]
)
def test_what_does_not_begin_as_an_entry_is_of_another_format(raw: bytes) -> None:
    """Also an entry that was reformatted: its checksum can't be verified any more."""
    assert refusal(raw).kind == "format"


@pytest.mark.parametrize("version", [b"-1", b"1.0", b"true", b"9" * 5000])
def test_a_schema_version_that_is_no_number_is_refused(version: bytes) -> None:
    """No digits make the reader fail in another way."""
    assert refusal(b'{"format":"bitnet-autotune-result","schema_version":' + version + b",\n").kind == "torn"


@pytest.mark.parametrize(
    "body",
    [
        b"}\n",
        b'"key":%b,\n"request":{},\n"result":{}}\n' % KEY.to_json(),
        b'"key":%b,\n"request":{},\n"result":{},\n"device_config":{}}\n' % KEY.to_json(),
        b'"request":{},\n"key":%b,\n"device_config":{},\n"result":{}}\n' % KEY.to_json(),
    ],
)
def test_a_body_with_other_fields_is_refused_though_its_checksum_fits(body: bytes) -> None:
    """A checksum says that bytes are intact, not that they mean anything."""
    assert refusal(with_checksum(body)).kind == "format"


@pytest.mark.parametrize(
    "key",
    [
        b"1",
        b'{"host":"../../etc","model":"%b","workload":"server"}' % MODEL_DIGEST.encode(),
        b'{"host":"%b","model":"%b","workload":"training"}' % (HOST_FINGERPRINT.encode(), MODEL_DIGEST.encode()),
        b'{"host":"%b", "model":"%b","workload":"chat"}' % (HOST_FINGERPRINT.encode(), MODEL_DIGEST.encode()),
        b'{"host":"%b","model":"\xff","workload":"chat"}' % HOST_FINGERPRINT.encode(),
    ],
)
def test_a_key_that_makes_no_file_name_is_refused(key: bytes) -> None:
    """A crafted file can't name a path outside of the cache."""
    raw = with_checksum(b'"key":%b,\n"request":{},\n"device_config":{},\n"result":{}}\n' % key)
    assert refusal(raw).kind == "key"


@pytest.mark.parametrize(
    ("host", "model", "workload", "message"),
    [
        ("", MODEL_DIGEST, "server", "expected 32 hex digits as host fingerprint, got ''"),
        ("A" * 32, MODEL_DIGEST, "server", "as host fingerprint"),
        (HOST_FINGERPRINT, "../" * 10 + "xx", "server", "as model digest"),
        (HOST_FINGERPRINT, MODEL_DIGEST, "../x", "expected one of chat, server, offline as workload, got '../x'"),
    ],
)
def test_a_key_is_checked_when_it_is_made(host: str, model: str, workload: str, message: str) -> None:
    """It becomes a path."""
    with pytest.raises(ValueError, match=message):
        Key(host, model, workload)


def test_keys_are_values() -> None:
    """Equal parts make equal keys."""
    same, other = Key(KEY.host, KEY.model, KEY.workload), Key(KEY.host, KEY.model, "chat")
    assert len({KEY, same, other}) == 2
    assert not KEY.__eq__((KEY.host, KEY.model, KEY.workload))
    assert eval(repr(KEY)) == KEY


def test_a_line_break_in_a_part_is_refused_when_encoding() -> None:
    """Fields are told apart by line breaks."""
    with pytest.raises(ValueError, match="line break"):
        encode(KEY, b"{}", b"{}", b'{\n"a": 1}')


def test_the_workloads_are_those_of_the_records() -> None:
    """The light module repeats them; nobody can add one in one place only."""
    assert get_args(WorkloadName) == WORKLOADS
