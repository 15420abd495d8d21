"""Reading the text files with which Linux describes a host (/proc and /sys), under any root folder.

Nothing here raises: a file that is missing, unreadable or malformed reads as None. On the loader's fast
path, so it imports only what the interpreter has loaded already; ``pathlib`` alone costs milliseconds.
"""

# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike


class Root:
    """The folder that stands for ``/``: the real one, or a simulated host's tree."""

    def __init__(self, folder: str | PathLike[str] = "/") -> None:
        self._prefix = os.fspath(folder).rstrip("/")

    def text(self, path: str) -> str | None:
        """Whole content of an absolute ``path``; None where it can't be read."""
        try:
            with open(self._prefix + path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one non-negative integer; None for anything else ("max", "-1", nothing)."""
        return as_number(self.text(path))

    def cpu_list(self, path: str) -> tuple[int, ...] | None:
        """A file that holds a CPU list; None where it can't be read, is malformed or empty."""
        return as_cpu_list(self.text(path))

    def entries(self, path: str) -> list[str]:
        """Sorted names in a folder; none where it can't be listed."""
        try:
            return sorted(os.listdir(self._prefix + path))
        except OSError:
            return []

    def first_processor(self) -> dict[str, str]:
        """Fields of the first processor in /proc/cpuinfo; empty where there is none.

        Reads no further than that: the kernel writes the file as it is read, and on a host with hundreds
        of CPUs the whole of it takes milliseconds.
        """
        fields: dict[str, str] = {}
        try:
            with open(self._prefix + "/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
                for line in file:
                    name, separator, value = line.partition(":")
                    if separator:
                        fields[name.strip()] = value.strip()
                    elif fields:
                        break
        except OSError:
            return {}
        return fields

    def meminfo_bytes(self, field: str) -> int | None:
        """One field of /proc/meminfo (``MemTotal``, ``MemAvailable``) in bytes."""
        return self._kibibytes("/proc/meminfo", field)

    def status_bytes(self, field: str) -> int | None:
        """One field of /proc/self/status (``RssAnon``: anonymous memory that this process holds) in bytes."""
        return self._kibibytes("/proc/self/status", field)

    def _kibibytes(self, path: str, field: str) -> int | None:
        """The ``name: number kB`` line of a file, in bytes."""
        for line in (self.text(path) or "").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                kibibytes = as_number(value.replace("kB", ""))
                return None if kibibytes is None else kibibytes * 1024
        return None


def as_number(text: str | None) -> int | None:
    """A non-negative decimal integer, or None."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else None


def as_cpu_list(text: str | None) -> tuple[int, ...] | None:
    """CPUs in the kernel's list format: ``"0-2,8"`` is (0, 1, 2, 8); None where malformed or empty."""
    cpus: set[int] = set()
    for part in (text or "").strip().split(","):
        first, dash, last = part.partition("-")
        low = as_number(first)
        high = as_number(last) if dash else low
        if low is None or high is None:
            return None
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus)) or None
