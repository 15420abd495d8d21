"""What commands print: documents on standard output, lines for a person on standard error."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from autotune.records import Result


def print_document(document: bytes) -> None:
    """Bytes as they are, on standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(document)
    sys.stdout.buffer.flush()


def print_record(record: object) -> None:
    """Records, or plain values, as one JSON document on standard output."""
    import msgspec

    print_document(msgspec.json.encode(record) + b"\n")


def print_summary(result: Result, saved_in: str | None) -> None:
    """What a person wants to know of a result."""
    from autotune.summary import show, summarize

    show(summarize(result, saved_in))
