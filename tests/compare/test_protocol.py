"""What two versions say to each other stays the same."""

from __future__ import annotations

import msgspec

from autotune.compare.protocol import PROTOCOL
from autotune.records import Configuration, Workload


def fields(kind: type[msgspec.Struct]) -> str:
    return " ".join(field.encode_name for field in msgspec.structs.fields(kind))


def test_what_a_side_is_asked_to_run_changes_only_with_the_protocol() -> None:
    """Other versions refuse fields of these that they don't know: raise PROTOCOL first, then change this."""
    assert (PROTOCOL, fields(Configuration), fields(Workload)) == (
        1,
        "device_layers head_device decode_threads prefill_threads batch_size prefill_chunk",
        "name prompt_tokens output_tokens context_tokens max_batch max_tpot_s max_ttft_s relaxed_tpot_ratio",
    )
