"""What a short run of a saved configuration said (``autotune confirm``), in words. Light: it reads records alone."""

from __future__ import annotations

from autotune.records import Check, Measured, Result

Lines = list[tuple[str, str]]


def slowdown(check: Check, workload: str) -> float:
    """By how much more time the configuration took than was expected, relative; negative: it was faster.

    Time per output token of whole requests; of a chat, or where no prompt was run, of a decode step.
    """
    if workload == "chat" or not check.prefill_ran:
        return check.found.tpot_s / check.expected.tpot_s - 1
    return check.expected.tokens_per_s / check.found.tokens_per_s - 1


def lines(result: Result) -> Lines:
    """What the last short run of a result's configuration found, as label and value; nothing where there was none."""
    check = result.check
    if check is None:
        return []
    found = f"{check.checked_at}, in {check.spent_s:.1f} s: {_figures(check.found, check)}, "
    told = [("checked", f"{found}{compared(result)}")]
    if not check.prefill_ran:
        told.append(("checked", "no prompt was run, for there was no time for it: --budget allows more"))
    if faster(check, result.workload.name):
        told.append(("checked", "it is faster than was expected: tuning anew may find something better still"))
    return told


def compared(result: Result) -> str:
    """A check's finding against what was expected; the result has a check."""
    check = result.check
    assert check is not None
    slower = slowdown(check, result.workload.name)
    known = "measured" if result.confirmed else "predicted"
    verdict = "which holds" if check.holds else "which no longer holds"
    return (
        f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'} than the {_figures(check.expected, check)} "
        f"{known} before, {verdict} within {check.tolerance:.1%}"
    )


def faster(check: Check, workload: str) -> bool:
    """Whether it was faster than was expected beyond the tolerance."""
    return 1 + slowdown(check, workload) < 1 / (1 + check.tolerance)


def _figures(measured: Measured, check: Check) -> str:
    tpot = f"TPOT {measured.tpot_s * 1e3:.3g} ms"
    if not check.prefill_ran:
        return tpot
    return f"{measured.tokens_per_s:.3g} tokens/s ({tpot}, TTFT {measured.ttft_s * 1e3:.3g} ms)"
