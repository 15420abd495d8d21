from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from autotune.records import DeviceConfig, Hybrid, HybridSplit
from autotune.store import cache, schema
from autotune.store.entry import SCHEMA_VERSION, Entry, encode, parse
from autotune.store.seal import BadEntry
from tests.builders import build_result
from tests.store.conftest import KEY, Layers

SHIPPED = Path(schema.__file__).with_name("result.schema.json")
HYBRID = DeviceConfig(
    strategy=Hybrid(split=HybridSplit(cpu_layers=10, gpu_layers=20)),
    cpu_threads=8,
    gpu_memory_fraction=0.5,
    recommended_batch_size=4,
)


def stored(**overrides: object) -> Entry:
    """An entry in memory, of a synthetic result with some of its JSON replaced."""
    result = json.loads(msgspec.json.encode(build_result()))
    config = json.dumps(overrides.pop("device_config", result["device_config"])).encode()
    return parse(encode(KEY, b"{}", config, json.dumps(result | overrides).encode()), "")


@pytest.mark.parametrize("device_config", [None, HYBRID])
def test_a_stored_file_validates_against_the_shipped_schema(layers: Layers, device_config: DeviceConfig | None) -> None:
    """A developer of another loader can rely on the schema for the whole document, envelope included."""
    result = build_result() if device_config is None else build_result(device_config=device_config)
    document = json.loads(Path(cache.write(result, {"workload": "server"})).read_bytes())
    validator = jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text()))
    validator.check_schema(validator.schema)
    validator.validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), SCHEMA_VERSION + 1),
        (("format",), "something else"),
        (("checksum",), "md5:0"),
        (("key", "host"), "../x"),
        (("device_config", "strategy"), "Both"),
        (("device_config", "cpu_threads"), "four"),
        (("result", "campaign"), None),
        (("more",), 1),
    ],
)
def test_the_schema_refuses_other_documents(layers: Layers, path: tuple[str, ...], value: object) -> None:
    """It isn't so loose that everything passes."""
    document = json.loads(Path(cache.write(build_result(), {})).read_bytes())
    *parents, name = path
    target = document
    for parent in parents:
        target = target[parent]
    target[name] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema.json_schema())


def test_the_shipped_schema_is_the_generated_one() -> None:
    """The file in the package follows the records."""
    assert SHIPPED.read_text() == schema.json_schema_text(), (
        "the records have changed. If that changes the JSON of saved results, raise SCHEMA_VERSION in "
        "autotune/store/entry.py and LAYOUT in autotune/store/paths.py; then run "
        "'python -m autotune schema > autotune/store/result.schema.json'"
    )


def test_the_schema_names_its_version() -> None:
    """One who finds the file alone knows what it describes."""
    document = schema.json_schema()
    assert document["$id"] == f"urn:bitnet-autotune:result:{SCHEMA_VERSION}"
    version = document["$defs"]["SavedResult"]["properties"]["schema_version"]
    assert version == {"enum": [SCHEMA_VERSION]}


def test_the_device_config_has_serdes_shape(layers: Layers) -> None:
    """Rust's plain derives read it: a unit variant is a string, a struct variant an object with one key."""
    raw = Path(cache.write(build_result(device_config=HYBRID), {})).read_bytes()
    assert (
        b'\n"device_config":{"strategy":{"Hybrid":{"cpu_layers":10,"gpu_layers":20}},"cpu_threads":8,'
        b'"gpu_memory_fraction":0.5,"recommended_batch_size":4},\n'
    ) in raw


def test_a_whole_result_comes_back_equal(layers: Layers) -> None:
    """Every measurement is in it: any stage can be replayed from the file."""
    result = build_result()
    cache.write(result, {})
    assert cache.read_as(schema.decode_result, KEY.host, KEY.model, KEY.workload) == result


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ({"tier": "fast"}, "schema"),
        ({"unheard_of": 1}, "schema"),
        ({"device_config": {"strategy": "Both"}}, "schema"),
        (
            {
                "device_config": {
                    "strategy": "GpuOnly",
                    "cpu_threads": None,
                    "gpu_memory_fraction": 0.9,
                    "recommended_batch_size": 1,
                }
            },
            "schema",
        ),
        ({"workload": json.loads(msgspec.json.encode(build_result(workload="chat").workload))}, "key"),
        ({"host": json.loads(msgspec.json.encode(build_result(host_fingerprint="1" * 32).host))}, "key"),
        ({"model": json.loads(msgspec.json.encode(build_result(model_digest="1" * 32).model))}, "key"),
    ],
)
def test_intact_bytes_that_contradict_themselves_or_the_records_are_bad(
    overrides: dict[str, object], kind: str
) -> None:
    """A right checksum doesn't make a result that can be used."""
    with pytest.raises(BadEntry) as caught:
        schema.decode_result(stored(**overrides))
    assert caught.value.kind == kind


def test_an_unreadable_device_config_is_bad() -> None:
    """Unknown strategies are refused, not passed on to a loader."""
    with pytest.raises(BadEntry, match="device_config that can't be read"):
        schema.decode_device_config(stored(device_config={"strategy": "Both"}))
