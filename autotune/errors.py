"""Every error this package raises on purpose; only the CLI turns them into sentences and exit codes."""

from __future__ import annotations


class AutotuneError(Exception):
    """Root of all errors raised on purpose.

    The message is one sentence that says what is wrong, where, what was expected and what was found.
    """


class UsageError(AutotuneError):
    """Raised when an option or argument has a value that no run could use."""


class ModelError(AutotuneError):
    """Raised when a model file is missing, unreadable, contradictory or of an unknown architecture."""


class MemoryLimitError(AutotuneError):
    """Raised when no configuration of the model fits the memory; says how much is needed and what would fit."""


class ConstraintError(AutotuneError):
    """Raised when configurations fit the memory but none meets the limits the user set (TPOT, TTFT)."""


class BudgetError(AutotuneError):
    """Raised when the time budget is too small to measure what a decision needs."""


class BenchmarkError(AutotuneError):
    """Raised when the benchmark ran but nothing usable came of it (every product failed)."""


class KernelUnavailableError(AutotuneError):
    """Raised when the kernel asked for can't run on this host, or none can run a weight format."""


class StoreError(AutotuneError):
    """Raised when the cache can't be written, or an entry named by the user can't be read."""


class ResultNotFoundError(AutotuneError):
    """Raised when a command needs a saved result and this host has none for the model."""


class RegressionError(AutotuneError):
    """Raised when something got worse: a comparison found so, or a saved result's figures no longer hold here."""


class ExportError(AutotuneError):
    """Raised when a target of ``export`` can't express a configuration."""
