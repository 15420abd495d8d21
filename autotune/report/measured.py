"""What runs told about configurations, with intervals wherever a configuration's parts were run."""

from __future__ import annotations

import math
from typing import NamedTuple

from autotune.conclusion import noise_of
from autotune.records import Configuration, Measured, Result
from autotune.search.evaluate import serving_time_s
from autotune.search.figures import Runs

_WIDEST = 0.9
"""Relative margin of a time beyond which its reciprocal's interval is not drawn any wider."""


class Rate(NamedTuple):
    """Figures of a configuration that was run.

    Attributes:
        measured: Its figures, as the search had them.
        within: 95 % interval of its output tokens per second.
    """

    measured: Measured
    within: tuple[float, float]


class Rates:
    """Looks up what was measured of configurations.

    Args:
        result: Holds the runs; those of another workload count where their parts are the same.
    """

    def __init__(self, result: Result) -> None:
        confirmation = result.confirmation
        self._workload = result.workload
        self._runs = Runs(result.workload, noise_of(result.campaign), () if confirmation is None else confirmation.runs)

    def of(self, configuration: Configuration) -> Rate | None:
        """A configuration's figures; None where a part of it was not run.

        Where a part has too few samples to tell their own spread, they are taken to have the host's noise.
        """
        standing = self._runs.standing(configuration)
        decode, prefill = map(self._runs.of, self._runs.halves(configuration))
        if standing is None or decode is None or prefill is None:
            return None
        found, sequences = standing.measured, configuration.batch_size
        # The time of a batch of requests is linear in both times, so each one's error adds its own share.
        shares = (
            serving_time_s(self._workload, sequences, self._runs.margin(decode) * found.tpot_s, 0.0),
            serving_time_s(self._workload, sequences, 0.0, self._runs.margin(prefill) * found.ttft_s),
        )
        total_s = serving_time_s(self._workload, sequences, found.tpot_s, found.ttft_s)
        margin = min(math.hypot(*shares) / total_s, _WIDEST)
        return Rate(found, (found.tokens_per_s / (1 + margin), found.tokens_per_s / (1 - margin)))
