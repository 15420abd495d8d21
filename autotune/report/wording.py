"""Quantities as a reader of the report sees them: three digits, and a unit that suits their size."""

from __future__ import annotations

from autotune.model.sizes import readable_bytes
from autotune.records import Configuration
from autotune.summary import three_digits

UNKNOWN = "–"
SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit, which belong on one line."""


def seconds(time_s: float | None) -> str:
    """A time: ``92.7 ms``."""
    if time_s is None:
        return UNKNOWN
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if time_s >= size:
            return f"{three_digits(time_s / size)}{SPACE}{unit}"
    return f"{three_digits(time_s * 1e6)}{SPACE}µs"


def rate(tokens_per_s: float | None) -> str:
    """Tokens per second: ``70.6 tokens/s``."""
    return UNKNOWN if tokens_per_s is None else f"{three_digits(tokens_per_s)}{SPACE}tokens/s"


def percent(share: float | None) -> str:
    """A share: ``2.1 %``."""
    return UNKNOWN if share is None else f"{share * 100:.1f}{SPACE}%"


def size(size_bytes: float | None) -> str:
    """Memory: ``2.56 GB``."""
    return UNKNOWN if size_bytes is None else readable_bytes(size_bytes).replace(" ", SPACE)


def counted(number: int, thing: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def ranges(numbers: list[int]) -> str:
    """Ascending numbers with runs put together: ``1–15, 20``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def brief(configuration: Configuration) -> str:
    """A configuration in a table's cell: ``10 layers on cpu, 20 on cuda:0, head on cuda:0, 2 threads, batch 8``.

    Where decode and prefill have different threads, both are told in this order.
    """
    (first, count), *others = configuration.device_layers.items()
    words = [f"{counted(count, 'layer')} on {first}", *(f"{count} on {device}" for device, count in others)]
    if configuration.head_device != first or others:
        words.append(f"head on {configuration.head_device}")
    if "cpu" in (*configuration.device_layers, configuration.head_device):
        decode, prefill = configuration.decode_threads, configuration.prefill_threads
        words.append(counted(decode, "thread") if decode == prefill else f"{decode} and {prefill} threads")
    return ", ".join([*words, f"batch {configuration.batch_size}", f"chunk {configuration.prefill_chunk}"])


def inside(words: str) -> str:
    """A heading within a sentence: ``Layers on GPUs`` is ``layers on GPUs`` there."""
    return f"{words[0].lower()}{words[1:]}"


def sentence(words: str) -> str:
    """Words as the beginning of a sentence."""
    return f"{words[0].upper()}{words[1:]}"
