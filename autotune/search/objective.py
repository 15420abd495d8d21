"""What a workload is after. Light: what explains a saved result needs no numerical library."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from autotune.records import Figures, Measured, Workload


def cost_s(workload: Workload, figures: Figures | Measured) -> float:
    """What a workload minimises first: TPOT for ``chat``, else the time per output token over whole requests."""
    return figures.tpot_s if workload.name == "chat" else 1 / figures.tokens_per_s
