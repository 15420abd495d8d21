"""What all records share: immutable, and strict about fields they don't know."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plain value that one stage hands to the next and that is saved as JSON.

    Units are SI and stand in the field's name: ``time_s``, ``size_bytes``, ``bandwidth_bytes_per_s``.
    What a host doesn't reveal is ``None`` ("unknown"), never a guess.
    """
