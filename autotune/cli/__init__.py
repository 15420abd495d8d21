"""The command line: human text on standard error, one JSON document on standard output with ``--json``.

One module per group of commands. Everything but the parser is imported when a command needs it: a cached answer must
not pay for the tuner.
"""

from autotune.cli.run import EXIT_CODES, EXIT_INTERRUPTED, EXIT_SYSTEM, main

__all__ = ["EXIT_CODES", "EXIT_INTERRUPTED", "EXIT_SYSTEM", "main"]
