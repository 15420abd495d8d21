"""Records as one tidy table: a row per tune, a column per figure, with the unit in its name."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from autotune.errors import UsageError
from autotune.history.store import Stored
from autotune.records import Hybrid, Measured
from autotune.records.history import HistoryRecord

if TYPE_CHECKING:
    from pandas import DataFrame

TAG = "tag."
"""What the column of a tag is called before its key."""

Kind = Literal["text", "time", "number", "count", "truth"]


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        name: With the unit.
        kind: What it holds.
        value: Its value for a record; None: unknown.
    """

    name: str
    kind: Kind
    value: Callable[[HistoryRecord], object]


def _measured(prefix: str, of: Callable[[HistoryRecord], Measured | None]) -> tuple[Column, ...]:
    """The columns of measured figures."""

    def column(field: str) -> Column:
        return Column(f"{prefix}{field}", "number", lambda record: getattr(of(record), field, None))

    return tuple(map(column, Measured.__struct_fields__))


def device_layers(record: HistoryRecord) -> str:
    """Layers by device in the order data flows: ``10 cpu, 20 cuda:0``."""
    return ", ".join(f"{layers} {device}" for device, layers in record.configuration.device_layers.items())


def _strategy(record: HistoryRecord) -> str:
    strategy = record.device_config.strategy
    return "Hybrid" if isinstance(strategy, Hybrid) else strategy


def _libraries(record: HistoryRecord) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in record.versions.libraries.items()) or None


def _on(by_device: dict[str, int], *, gpu: bool) -> int | None:
    """The sum over a kind of devices; None where there is none of it."""
    found = [value for device, value in by_device.items() if (device != "cpu") == gpu]
    return sum(found) if found else None


def _held_out(record: HistoryRecord, left_out: str) -> float | None:
    """The CPU's median error of predicting what a fit didn't see."""
    return next((error.median for error in record.held_out.get("cpu", ()) if error.left_out == left_out), None)


COLUMNS = (
    Column("recorded_at", "time", lambda record: record.recorded_at),
    Column("measured_at", "time", lambda record: record.measured_at),
    Column("model", "text", lambda record: record.model_name),
    Column("model_digest", "text", lambda record: record.model_digest),
    Column("weight_format", "text", lambda record: record.weight_format),
    Column("workload", "text", lambda record: record.workload.name),
    Column("prompt_tokens", "count", lambda record: record.workload.prompt_tokens),
    Column("output_tokens", "count", lambda record: record.workload.output_tokens),
    Column("context_tokens", "count", lambda record: record.workload.context_tokens),
    Column("max_batch", "count", lambda record: record.workload.max_batch),
    Column("max_tpot_s", "number", lambda record: record.workload.max_tpot_s),
    Column("max_ttft_s", "number", lambda record: record.workload.max_ttft_s),
    Column("hardware_class", "text", lambda record: record.hardware_class or None),
    Column("host_label", "text", lambda record: record.host_label),
    Column("cpu_name", "text", lambda record: record.cpu_name),
    Column("usable_threads", "count", lambda record: record.usable_threads),
    Column("memory_usable_bytes", "count", lambda record: record.memory_usable_bytes),
    Column("gpus", "text", lambda record: "; ".join(record.gpus) or None),
    Column("driver", "text", lambda record: record.driver),
    Column("commit", "text", lambda record: record.commit),
    Column("branch", "text", lambda record: record.branch),
    Column("dirty", "truth", lambda record: record.dirty),
    Column("job_name", "text", lambda record: record.job and record.job.name),
    Column("job_run_id", "text", lambda record: record.job and record.job.run_id),
    Column("job_attempt", "count", lambda record: record.job and record.job.attempt),
    Column("job_url", "text", lambda record: record.job and record.job.url),
    Column("strategy", "text", _strategy),
    Column("device_layers", "text", device_layers),
    Column("cpu_layers", "count", lambda record: _on(record.configuration.device_layers, gpu=False) or 0),
    Column("gpu_layers", "count", lambda record: _on(record.configuration.device_layers, gpu=True) or 0),
    Column("head_device", "text", lambda record: record.configuration.head_device),
    Column("decode_threads", "count", lambda record: record.configuration.decode_threads),
    Column("prefill_threads", "count", lambda record: record.configuration.prefill_threads),
    Column("batch_size", "count", lambda record: record.configuration.batch_size),
    Column("prefill_chunk", "count", lambda record: record.configuration.prefill_chunk),
    *_measured("", lambda record: record.measured),
    Column("predicted_tokens_per_s", "number", lambda record: record.predicted.tokens_per_s),
    Column("predicted_tpot_s", "number", lambda record: record.predicted.tpot_s),
    Column("predicted_ttft_s", "number", lambda record: record.predicted.ttft_s),
    *_measured("default_", lambda record: record.default),
    Column("speedup_over_default", "number", lambda record: record.speedup_over_default),
    Column("decode_samples", "count", lambda record: len(record.decode_samples_s)),
    Column("prefill_samples", "count", lambda record: len(record.prefill_samples_s)),
    Column("noise", "text", lambda record: record.noise_label),
    Column("noise_relative_interval", "number", lambda record: record.noise.median_relative_interval),
    Column("control_drift", "number", lambda record: record.noise.control_drift),
    Column("steal_fraction", "number", lambda record: record.noise.steal_fraction),
    Column("throttled_s", "number", lambda record: record.noise.throttled_s),
    Column("held_out_interior_m_error", "number", lambda record: _held_out(record, "interior m")),
    Column("held_out_site_error", "number", lambda record: _held_out(record, "site")),
    Column("held_out_thread_count_error", "number", lambda record: _held_out(record, "thread count")),
    Column("memory_planned_cpu_bytes", "count", lambda record: _on(record.memory_planned_bytes, gpu=False)),
    Column("memory_planned_gpu_bytes", "count", lambda record: _on(record.memory_planned_bytes, gpu=True)),
    Column("memory_used_cpu_bytes", "count", lambda record: _on(record.memory_used_bytes, gpu=False)),
    Column("memory_used_gpu_bytes", "count", lambda record: _on(record.memory_used_bytes, gpu=True)),
    Column("tune_time_s", "number", lambda record: record.tune_time_s),
    Column("provenance", "text", lambda record: record.provenance),
    Column("warnings", "text", lambda record: "; ".join(record.warnings) or None),
    Column("autotune_version", "text", lambda record: record.versions.autotune),
    Column("python_version", "text", lambda record: record.versions.python),
    Column("libraries", "text", _libraries),
    Column("kernels_digest", "text", lambda record: record.versions.kernels),
    Column("measuring_policy", "count", lambda record: record.versions.measuring_policy),
)
"""All columns but the path, which is the file's and not the record's, and the tags'; in order."""

_DTYPES: dict[Kind, str] = {"text": "string", "number": "float64", "count": "Int64", "truth": "boolean"}


def columns(stored: Sequence[Stored]) -> dict[str, list[Any]]:
    """The table as plain lists by column; times as they were recorded, unknown values None."""
    records = [one.record for one in stored]
    # A path may hold bytes that are no text, which neither JSON nor a table can.
    lists: dict[str, list[Any]] = {"path": [os.fsencode(one.path).decode(errors="replace") for one in stored]}
    lists |= {column.name: [column.value(record) for record in records] for column in COLUMNS}
    for key in sorted({key for record in records for key in record.tags}):
        lists[f"{TAG}{key}"] = [record.tags.get(key) for record in records]
    return lists


def rows(stored: Sequence[Stored]) -> list[dict[str, Any]]:
    """The table as plain values by row and column."""
    lists = columns(stored)
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def table(stored: Sequence[Stored]) -> DataFrame:
    """Records as one pandas table: times in UTC, numbers as such, unknown values missing."""
    import pandas as pd

    lists = columns(stored)
    kinds = {column.name: column.kind for column in COLUMNS}

    def series(name: str, values: list[Any]) -> pd.Series[Any]:
        kind = kinds.get(name, "text")
        if kind == "time":
            return pd.Series(pd.to_datetime(values, utc=True, format="ISO8601").as_unit("us"))
        return pd.Series(values, dtype=_DTYPES[kind])

    return pd.DataFrame({name: series(name, values) for name, values in lists.items()})


def to_csv(stored: Sequence[Stored]) -> bytes:
    """The table as CSV in UTF-8, with a header; unknown values are empty."""
    return table(stored).to_csv(index=False, lineterminator="\n").encode()


def to_parquet(stored: Sequence[Stored]) -> bytes:
    """The table as Parquet.

    Raises:
        UsageError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:  # pandas' own message is about other libraries as well
        raise UsageError("--parquet needs pyarrow, which is not installed: `pip install 'bitnet-autotune[parquet]'`")
    buffer = io.BytesIO()
    table(stored).to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
