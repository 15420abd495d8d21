"""Command lines and environment files that shells and containers read alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from autotune.errors import ExportError

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./^-]*")
"""What needs no quotes in a POSIX shell: Docker takes quotes in ``--env-file`` for part of the value."""


def command_line(program: Iterable[str], options: Mapping[str, str]) -> str:
    """One line for a POSIX shell: the program's words, then options with their values."""
    return shlex.join([*program, *(word for option in options.items() for word in option if word)]) + "\n"


def environment_file(variables: Mapping[str, str]) -> str:
    """``NAME=value`` lines without quotes, which ``set -a; . FILE`` and ``docker run --env-file FILE`` both read.

    Raises:
        ExportError: A value would need quotes.
    """
    for name, value in variables.items():
        if not _PLAIN.fullmatch(value):
            raise ExportError(
                f"a file that both sh and Docker read can't hold {name}={value!r}: "
                f"expected letters, digits and any of _@%+=:,./^- alone, got others"
            )
    return "".join(f"{name}={value}\n" for name, value in variables.items())
