"""Runs a search on the synthetic engine in a process of its own, to be killed: ``python -m ... URL LOG SHARE``.

What a finished call of the engine measured is appended to LOG as JSON once the search asks for the next, which it does
when it has kept it. The outcome goes to standard output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from autotune.records import Configuration, PartRun, Phase, RunFailure, Workload
from autotune.search.measured import search
from tests.builders import build_workload
from tests.search.synthetic_engine import Problem, SyntheticClock, SyntheticEngine

BUDGET_S = 30.0


def slow_beyond_four(part):
    """The predicted best is far off, so that there is something to search."""
    return 1.25 if part.threads > 4 else 1.0


def problem() -> Problem:
    return Problem(
        workload=build_workload(
            name="offline",
            prompt_tokens=256,
            output_tokens=128,
            max_batch=16,
            max_tpot_s=None,
            relaxed_tpot_ratio=None,
        )
    )


class LoggingEngine(SyntheticEngine):
    """Appends what was kept to a file."""

    log: Path
    last: PartRun | None = None

    def measure(
        self, configuration: Configuration, workload: Workload, phase: Phase, *, at_least: int, at_most_s: float
    ) -> PartRun | RunFailure:
        if self.last is not None:
            with self.log.open("ab") as file:
                file.write(msgspec.json.encode(self.last) + b"\n")
        found = super().measure(configuration, workload, phase, at_least=at_least, at_most_s=at_most_s)
        self.last = found if isinstance(found, PartRun) else None
        return found


def main() -> None:
    url, log, share = sys.argv[1:]
    synthetic, clock = problem(), SyntheticClock(real_share=float(share))
    engine = LoggingEngine(synthetic.truth(slow_beyond_four), clock, seed=os.getpid())
    engine.log = Path(log)
    print("ready", flush=True)
    outcome = search(engine, **synthetic.arguments(clock=clock, storage=url, budget_s=BUDGET_S))
    sys.stdout.buffer.write(msgspec.json.encode({"winner": outcome.winner, "confirmation": outcome.confirmation}))


if __name__ == "__main__":
    main()
