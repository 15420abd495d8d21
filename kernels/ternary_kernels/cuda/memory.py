"""Whether an error means that a device's memory is used up."""

from __future__ import annotations

import re

_IN_WORDS = re.compile(r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
"""Not every part of torch raises its own error; the second are the words of its CPU allocator, the third those of the
libraries that it calls."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there wasn't enough memory for what failed, or for what failed before it and so brought it about."""
    return bool(_IN_WORDS.search(str(error))) or (error.__context__ is not None and is_out_of_memory(error.__context__))
