"""How times are put in words. Light: what explains a saved result needs no numerical library."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from autotune.costmodel.steps import Seconds


def compared(other_s: float | Seconds, chosen_s: float | Seconds) -> str:
    """How another time relates to the chosen one: 10 % slower takes 1.1 times as long."""
    change = float(other_s / chosen_s) - 1
    if abs(change) < 0.0005:
        return "as fast"
    if change >= 1:
        return f"{1 + change:.1f} times slower"
    return f"{abs(change) * 100:.1f} % {'slower' if change > 0 else 'faster'}"


def milliseconds(time_s: float | Seconds) -> str:
    """A time for people: ``41.4 ms``."""
    return f"{float(time_s) * 1e3:.4g} ms"
