"""A saved result as records: its decoding, and the JSON Schema generated from them."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any, Literal

import msgspec

from autotune.records.base import Record
from autotune.records.configuration import DeviceConfig, WorkloadName
from autotune.records.result import Result
from autotune.store.entry import SCHEMA_VERSION, Entry
from autotune.store.seal import BadEntry

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class ResultKey(Record, frozen=True):
    """What a result is filed under."""

    host: Digest
    """The host's cheap fingerprint."""
    model: Digest
    """Digest of the model's source."""
    workload: WorkloadName


class SavedResult(Record, frozen=True):
    """A result as it is saved: one document per host, model and workload."""

    format: Literal["bitnet-autotune-result"]
    schema_version: Literal[2]
    checksum: Annotated[
        str,
        msgspec.Meta(
            pattern="^sha256:[0-9a-f]{64}$",
            description="SHA-256 of the bytes of the file below this field's line.",
        ),
    ]
    key: ResultKey
    request: dict[str, Any]
    """What the user asked for."""
    device_config: DeviceConfig
    """What a loader needs, repeated from the result."""
    result: Result


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a saved result, generated from the records."""
    schema = msgspec.json.schema(SavedResult)
    for definition in schema["$defs"].values():
        # A record's docstring, whose indentation Python keeps up to 3.12 and drops from 3.13 on.
        definition["description"] = inspect.cleandoc(definition["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:bitnet-autotune:result:{SCHEMA_VERSION}",
        "title": f"bitnet-autotune result, schema version {SCHEMA_VERSION}",
        **schema,
    }


def json_schema_text() -> str:
    """`json_schema` as ``result.schema.json``, beside this module, holds it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def decode_device_config(entry: Entry) -> DeviceConfig:
    """The device config of an entry.

    Raises:
        BadEntry: Where it doesn't fit the record.
    """
    try:
        return msgspec.json.decode(entry.device_config_json, type=DeviceConfig)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds a device_config that can't be read: {error}") from error


def decode_result(entry: Entry) -> Result:
    """The whole result of an entry.

    Raises:
        BadEntry: Where it doesn't fit the records, or isn't what the entry's key and device_config say.
    """
    try:
        result = msgspec.json.decode(entry.result_json, type=Result)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds a result that can't be read: {error}") from error
    about = (result.host.fingerprint.cheap, result.model.source_digest, result.workload.name)
    if about != (entry.key.host, entry.key.model, entry.key.workload):
        raise BadEntry("key", "holds the result of another host, model or workload than its key says")
    if result.device_config != decode_device_config(entry):
        raise BadEntry("schema", "holds two different device_configs")
    return result
