"""The file format of a saved result: one JSON document that can be verified without parsing it.

One field stands on each line, so the few bytes that a loader wants are found by splitting lines::

    {"format":"bitnet-autotune-result","schema_version":2,
    "checksum":"sha256:<64 hex digits>",
    "key":{"host":"<cheap fingerprint>","model":"<digest>","workload":"server"},
    "request":{...},
    "device_config":{...},
    "result":{...}}

``device_config`` is repeated from the result, for loaders in other languages. Light: imports nothing but hashlib.
"""

from __future__ import annotations

from autotune.errors import UsageError
from autotune.store import paths
from autotune.store.seal import BadEntry, begins, seal, unseal

TYPE_CHECKING = False  # typing takes longer to import than this module
if TYPE_CHECKING:
    from typing import Any

SCHEMA_VERSION = 2
# Version history. A version's first line stays readable to all others.
# 1: the first.
# 2: hardware class, smaller configurations, where an imported result was measured, the last check.
OLDEST_VERSION = 1
"""Oldest that is read: what version 2 added has defaults."""

MAX_BYTES = 64 * 2**20
"""Largest entry that is read or written. Real ones, raw samples included, stay below 2 MiB."""

WORKLOADS = ("chat", "server", "offline")
"""The names in `autotune.records.configuration.WorkloadName`, without importing msgspec."""

_FORMAT = "bitnet-autotune-result"


def check_workload(name: str) -> None:
    """Check a workload's name that a user gave.

    Raises:
        UsageError: There is no such workload.
    """
    if name not in WORKLOADS:
        raise UsageError(f"the workload must be one of {', '.join(WORKLOADS)}, got {name!r}")


class Key:
    """What a result is filed under.

    Args:
        host: The host's cheap fingerprint, 32 hex digits.
        model: Digest of the model's source, 32 hex digits.
        workload: One of `WORKLOADS`.

    Raises:
        ValueError: Where one of them is anything else. (They make up a file's path.)
    """

    __slots__ = ("host", "model", "workload")

    def __init__(self, host: str, model: str, workload: str) -> None:
        for name, digest in (("host fingerprint", host), ("model digest", model)):
            if len(digest) != 32 or digest.strip("0123456789abcdef"):
                raise ValueError(f"expected 32 hex digits as {name}, got {digest!r}")
        if workload not in WORKLOADS:
            raise ValueError(f"expected one of {', '.join(WORKLOADS)} as workload, got {workload!r}")
        self.host = host
        self.model = model
        self.workload = workload

    def path_in(self, layer: str) -> str:
        """The entry's file in a layer."""
        return paths.entry_path(layer, self.host, self.model, self.workload)

    def to_json(self) -> bytes:
        """The key as it stands in the document. Its three values never need escaping."""
        return f'{{"host":"{self.host}","model":"{self.model}","workload":"{self.workload}"}}'.encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"Key(host={self.host!r}, model={self.model!r}, workload={self.workload!r})"


class Entry:
    """One verified entry, its parts still in JSON.

    Attributes:
        key: What it is filed under.
        path: The file it was read from.
        raw: The whole document as it lies in the file.
        request_json: What the user asked for.
        device_config_json: `autotune.records.DeviceConfig`.
        result_json: `autotune.records.Result`.
    """

    __slots__ = ("device_config_json", "key", "path", "raw", "request_json", "result_json")

    def __init__(
        self,
        key: Key,
        path: str,
        raw: bytes,
        request_json: bytes,
        device_config_json: bytes,
        result_json: bytes,
    ) -> None:
        self.key = key
        self.path = path
        self.raw = raw
        self.request_json = request_json
        self.device_config_json = device_config_json
        self.result_json = result_json

    @property
    def request(self) -> dict[str, Any]:
        """What the user asked for, as it was handed to `cache.write`."""
        import json

        request: dict[str, Any] = json.loads(self.request_json)
        return request


def encode(key: Key, request_json: bytes, device_config_json: bytes, result_json: bytes) -> bytes:
    """The document of one result.

    Raises:
        ValueError: Where a part holds a line break: fields are told apart by them.
    """
    parts = (key.to_json(), request_json, device_config_json, result_json)
    if any(b"\n" in part for part in parts):
        raise ValueError("expected JSON on one line, got a line break in it")
    body = b'"key":%b,\n"request":%b,\n"device_config":%b,\n"result":%b}\n' % parts
    return seal(_FORMAT, SCHEMA_VERSION, body)


def parse(raw: bytes, path: str) -> Entry:
    """Verify a document and split it into its parts.

    Args:
        raw: The whole file.
        path: Where it was read from.

    Raises:
        BadEntry: Where it is cut short, damaged, of another schema version, or something else altogether.
    """
    _, body = unseal(raw, _FORMAT, "a saved result", SCHEMA_VERSION, OLDEST_VERSION)
    lines = body.split(b"\n")
    if len(lines) != 5:
        raise BadEntry("format", f"has {len(lines) + 1} lines where 6 were expected")
    return Entry(
        _key(_field(lines[0], b'"key":', b",")),
        path,
        raw,
        request_json=_field(lines[1], b'"request":', b","),
        device_config_json=_field(lines[2], b'"device_config":', b","),
        result_json=_field(lines[3], b'"result":', b"}"),
    )


def is_entry(raw: bytes) -> bool:
    """Whether bytes begin as a saved result of any version does."""
    return begins(raw, _FORMAT)


def _field(line: bytes, prefix: bytes, suffix: bytes) -> bytes:
    if not (line.startswith(prefix) and line.endswith(suffix)):
        raise BadEntry("format", f"has no {prefix.decode()} where it was expected")
    return line[len(prefix) : -len(suffix)]


def _key(text: bytes) -> Key:
    quoted = text.split(b'"')
    try:
        key = Key(*(quoted[index].decode() for index in (3, 7, 11)))
    except (IndexError, ValueError):  # UnicodeDecodeError is a ValueError
        key = None
    if key is None or key.to_json() != text:
        raise BadEntry("key", "has a key that names no host, model and workload")
    return key
