"""From the words on the command line to an exit code: streams, signals, and errors as sentences."""

from __future__ import annotations

import os
import signal
import sys
import warnings

from autotune import errors
from autotune.cli.arguments import parse

TYPE_CHECKING = False  # typing is not needed at run time, and this path is timed in milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES = {
    errors.UsageError: 2,
    errors.ModelError: 3,
    errors.MemoryLimitError: 4,
    errors.ConstraintError: 5,
    errors.BudgetError: 6,
    errors.BenchmarkError: 7,
    errors.StoreError: 8,
    errors.ResultNotFoundError: 9,
    errors.KernelUnavailableError: 10,
    errors.RegressionError: 11,
    errors.ExportError: 12,
}
EXIT_SYSTEM = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_closed_streams()
    warnings.showwarning = _show_warning
    try:
        try:
            args = parse(sys.argv[1:] if argv is None else argv)
            code: int = args.run(args)
            return code
        finally:
            # Not left to the interpreter's exit, where a full disk or a closed pipe can't be dealt with.
            sys.stdout.flush()
    except errors.AutotuneError as error:
        print(f"autotune: {error}", file=sys.stderr)
        return EXIT_CODES[type(error)]
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses Ctrl-C twice gets one sentence as well
        print("autotune: stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        # What is left in the buffer must not be written again at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            print(f"autotune: the system refused: {error}", file=sys.stderr)
        return EXIT_SYSTEM


def _open_closed_streams() -> None:
    """A standard stream that was closed is None to Python, and its number would go to the next file opened."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (light; open until the end)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"autotune: warning: {message}", file=sys.stderr)
