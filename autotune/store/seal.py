"""A JSON document that can be verified without parsing it: what it is, its version, and a checksum over all the rest.

One field stands on each of its first lines, and the checksum covers every byte below its own line::

    {"format":"bitnet-autotune-result","schema_version":2,
    "checksum":"sha256:<64 hex digits>",
    <the other fields>}

To any JSON parser this is an ordinary document; but whoever reformats it breaks the checksum. Light: imports nothing
but hashlib.
"""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False  # typing takes longer to import than this module
if TYPE_CHECKING:
    from typing import Literal

_CHECKSUM = b'"checksum":"sha256:'
_CHECKSUM_LINE_BYTES = len(_CHECKSUM) + 64 + len(b'",\n')


class BadEntry(Exception):  # noqa: N818 (what was found, not what went wrong)
    """Raised when bytes are no valid document. Private to what reads them: it becomes a miss, or a `StoreError`.

    Attributes:
        kind: One word, for the name of the file that is moved aside.
    """

    def __init__(
        self, kind: Literal["torn", "format", "schema", "checksum", "key", "size", "file"], message: str
    ) -> None:
        super().__init__(message)
        self.kind = kind


def seal(name: str, version: int, body: bytes) -> bytes:
    r"""The document with these fields.

    Args:
        name: What it is: ``bitnet-autotune-result``.
        version: Of its schema.
        body: The other fields as JSON with the closing brace and a line break: ``"key":...,\n...}\n``.

    Raises:
        ValueError: The body doesn't end so.
    """
    if not body.endswith(b"}\n"):
        raise ValueError(f"expected fields that end with a brace and a line break, got {body[-10:]!r}")
    return b'%b%d,\n%b%b",\n%b' % (_head(name), version, _CHECKSUM, _digest(body), body)


def unseal(raw: bytes, name: str, what: str, version: int, oldest: int) -> tuple[int, bytes]:
    """Verify a document; returns its version and its body.

    Args:
        raw: The whole file.
        name: What it must be.
        what: That in words, for messages: ``a saved result``.
        version: The newest that can be read.
        oldest: The oldest that can be read.

    Raises:
        BadEntry: Where it is cut short, damaged, of a version that can't be read, or something else altogether.
    """
    found, checksum_at = _check_version(raw, name, what, version, oldest)
    body_at = checksum_at + _CHECKSUM_LINE_BYTES
    if len(raw) <= body_at or not raw.endswith(b"}\n"):
        raise BadEntry("torn", f"is cut short after {len(raw)} bytes")
    body = raw[body_at:]
    if raw[checksum_at:body_at] != b'%b%b",\n' % (_CHECKSUM, _digest(body)):
        raise BadEntry("checksum", "does not match its checksum")
    return found, body


def begins(raw: bytes, name: str) -> bool:
    """Whether bytes begin as such a document of any version does."""
    return raw.startswith(_head(name))


def _check_version(raw: bytes, name: str, what: str, version: int, oldest: int) -> tuple[int, int]:
    """Check the first line; returns the version and the offset of the second line."""
    head = _head(name)
    if not raw.startswith(head):
        if head.startswith(raw):
            raise BadEntry("torn", f"is cut short after {len(raw)} bytes")
        raise BadEntry("format", f"does not begin as {what} does")
    end = raw.find(b",\n", len(head), len(head) + 12)
    digits = raw[len(head) : end]
    if end < 0 or not digits.isdigit():
        raise BadEntry("torn", "is cut short or damaged in its first line")
    found = int(digits)
    if not oldest <= found <= version:
        age = "a newer" if found > version else "an older"
        reads = f"{version}" if oldest == version else f"{oldest} to {version}"
        raise BadEntry("schema", f"has schema version {found}, written by {age} autotune; this one reads {reads}")
    return found, end + len(b",\n")


def _head(name: str) -> bytes:
    return b'{"format":"%b","schema_version":' % name.encode()


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
