"""What runs of the whole model teach: by how much each device's predictions are off, and how sure that is.

Sums of separately timed operations miss what only happens between them: caches that one operation leaves to the next,
bandwidth that they share, the runtime's own time. That scales with the work, so the unknown is the logarithm of
measured over predicted time. It is modelled as a Gaussian process over thread count, pass size and context: an offset,
which holds everywhere, and a smooth part, which fades with the distance from what was run.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 2.1 and section 5.4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.records import CorrectionReport, Part, PartRun, Phase
from autotune.records.measurement import median, relative_median_interval

Floats = NDArray[np.float64]

# What is believed before anything was run, as standard deviations of the logarithm: about as much as cold product
# times were found to miss of other engines' decode steps (0-23 %). Fixed beforehand: a few runs can't tell them.
_SHARED_OFFSET_SD = 0.07
_PHASE_OFFSET_SD = 0.07
"""Of an offset's 10 % half of the variance is common to decode and prefill: each tells something of the other."""
_SMOOTH_SD = 0.05
_OWN_SD = 0.01
"""What is peculiar to one combination of threads and size, of which its neighbours don't tell: how threads fall on
cores, how a size divides into tiles. Without it two differing neighbours would bend the smooth part at will."""
_OCTAVES = np.array([2.0, 2.0, 4.0])
"""Doublings of threads, size and context over which the smooth part changes. A longer context only shifts time from
products to attention."""
_ODD_SIGMAS = 4.0
"""Beyond this a run disagrees with all others, as one on more threads than there are free cores does: what makes it so
is then its own, and the others don't follow it."""

NOISE_FLOOR = 0.003
"""A median is never known better: clocks and pages differ by as much between two runs of the same."""
_ONE_SAMPLE_SD = 0.03
_SPLIT_SD = 0.02
"""How well a device's share of a step over several devices tells of its layers: where one ends and the next begins
isn't sharp, and a few layers tell of all."""


Place = tuple[bool, int, int, int]
"""What corrections are a function of: whether it is decode, threads, size, context."""


class _Observation(NamedTuple):
    """What the pooled runs of a part tell of one device: log(measured / predicted), and its standard error."""

    part: Part
    place: Place
    log_ratio: float
    sd: float


class LogFactors(NamedTuple):
    """The logarithms of what times are to be multiplied by: their mean and standard deviation, of the same shape."""

    mean: Floats
    sd: Floats


class Correction:
    """The correction of one device's predictions in both phases; without observations what is believed beforehand.

    Args:
        observations: Of parts that were run there.
        device: Which device's.
    """

    def __init__(self, observations: Sequence[_Observation] = (), device: str = "cpu") -> None:
        self._device = device
        # Several at one place, as of layers split otherwise, are as good as their weighted mean.
        self._observations: dict[Place, list[_Observation]] = {}
        for found in observations:
            self._observations.setdefault(found.place, []).append(found)
        precisions = [[found.sd**-2 for found in here] for here in self._observations.values()]
        self._places = np.array(list(self._observations), np.int64).reshape(-1, 4)
        self._log_ratios = np.array(
            [
                np.average([found.log_ratio for found in here], weights=weights)
                for here, weights in zip(self._observations.values(), precisions, strict=True)
            ]
        )
        self._noise = np.array([max(1 / sum(weights), NOISE_FLOOR**2) for weights in precisions])
        self._own = np.full(len(self._places), _OWN_SD**2)
        self._condition()
        if self._set_odd_ones_apart():
            self._condition()

    def over(self, phase: Phase, threads: NDArray[np.int64], sizes: NDArray[np.int64], context: int) -> LogFactors:
        """Correction of a grid of passes.

        Args:
            phase: Decode or prefill.
            threads: CPU thread counts, shape (T,); of a GPU 1 alone.
            sizes: Batches or chunks, shape (X,).
            context: Tokens in the KV cache of a decode step, or a prompt's tokens.

        Returns:
            Each of shape (T, X).
        """
        mean, sd = self._at(_places(phase, threads, sizes, context))
        shape = len(threads), len(sizes)
        return LogFactors(mean.reshape(shape), sd.reshape(shape))

    def factor(self, part: Part) -> float:
        """What the predicted time of this device's share of a part is to be multiplied by."""
        return float(np.exp(self._at(np.array([_place(part, self._device)])).mean[0]))

    def reports(self) -> Iterator[CorrectionReport]:
        """What the runs told, by phase, with errors of predicting those at each place from all others."""
        observed = [found for here in self._observations.values() for found in here]
        log_ratios = np.array([found.log_ratio for found in observed])
        before = np.abs(np.expm1(-log_ratios))
        per_place = [len(here) for here in self._observations.values()]
        missed = np.repeat(self._missed(self._whiten.T @ self._whiten), per_place)
        from_others = np.repeat(self._log_ratios, per_place) - missed
        after = np.abs(np.expm1(from_others - log_ratios)) if len(per_place) > 1 else None
        for phase in dict.fromkeys(found.part.phase for found in observed):
            of_phase = np.array([found.part.phase == phase for found in observed])
            yield CorrectionReport(
                device=self._device,
                phase=phase,
                runs=len({found.part for found in observed if found.part.phase == phase}),
                factor=float(np.exp(log_ratios[of_phase].mean())),
                median_error_before=float(np.median(before[of_phase])),
                median_error_after=None if after is None else float(np.median(after[of_phase])),
            )

    def _condition(self) -> None:
        """Condition what is believed on what was observed."""
        covariance = _covariance(self._places, self._places) + np.diag(self._own + self._noise)
        # The noise on the diagonal keeps it positive definite, however near the places are.
        self._whiten = np.linalg.solve(np.linalg.cholesky(covariance), np.eye(len(covariance)))
        self._whitened = self._whiten @ self._log_ratios

    def _missed(self, precision: Floats) -> Floats:
        """By how much each observation differs from what all others predict there; shape (N,)."""
        missed: Floats = precision @ self._log_ratios / precision.diagonal()
        return missed

    def _set_odd_ones_apart(self) -> bool:
        """Make room for what is peculiar to a place, the oddest first, where at least two others of its phase differ.

        Odd ones are few: if it were many, the smooth part would have to bend.

        Returns:
            Whether there are any.
        """
        decode = self._places[:, 0]
        can_be_told = np.array([np.count_nonzero(decode == phase) >= 3 for phase in decode], bool)
        precision = self._whiten.T @ self._whiten
        for _ in range(len(decode) // 3):
            missed = self._missed(precision)
            sigmas = np.where(can_be_told, np.abs(missed) * np.sqrt(precision.diagonal()), 0.0)
            oddest = int(sigmas.argmax())
            if sigmas[oddest] < _ODD_SIGMAS:
                break
            can_be_told[oddest] = False
            more = missed[oddest] ** 2
            self._own[oddest] += more
            # Sherman and Morrison: the inverse after adding to one element of the diagonal.
            column = precision[:, oddest]
            precision = precision - more / (1 + more * column[oddest]) * np.outer(column, column)
        return bool((self._own > _OWN_SD**2).any())

    def _at(self, places: NDArray[np.int64]) -> LogFactors:
        """Mean and standard deviation at places of shape (P, 4), each of shape (P,)."""
        own = self._own[:, None] * (self._places[:, None] == places).all(axis=-1)
        whitened = self._whiten @ (_covariance(self._places, places) + own)
        variance = _VARIANCE + own.max(axis=0, initial=_OWN_SD**2) - np.square(whitened).sum(axis=0)
        return LogFactors(self._whitened @ whitened, np.sqrt(np.maximum(variance, NOISE_FLOOR**2)))


def corrections(
    runs: Iterable[tuple[PartRun, Mapping[str, float]]], measured_as: Mapping[str, str]
) -> dict[str, Correction]:
    """The correction of each device that was timed.

    Args:
        runs: One for each part that was run, with its uncorrected seconds per device.
        measured_as: For each device that of whose model it is: identical GPUs share one.
    """
    observations: dict[str, list[_Observation]] = {representative: [] for representative in measured_as.values()}
    for run, predicted_s in runs:
        for device, found in _observe(run, predicted_s):
            observations[measured_as[device]].append(found)
    return {device: Correction(found, device) for device, found in observations.items()}


def _observe(run: PartRun, predicted_s: Mapping[str, float]) -> Iterator[tuple[str, _Observation]]:
    """What a part's samples tell of each device that has work in it."""
    working = {device: time_s for device, time_s in predicted_s.items() if time_s > 0}
    measured = {device: run.device_s[device] for device in working if min(run.device_s.get(device, ()), default=0) > 0}
    shares_s = {device: median(samples_s) for device, samples_s in measured.items()}
    if len(shares_s) < len(working):
        # A runtime that doesn't tell its devices apart: all are taken to be off by as much.
        shares_s, measured = working, dict.fromkeys(working, run.samples_s)
    # Time that was counted for no device is shared out, so that corrected shares add up to what was measured.
    scale = run.median_s / sum(shares_s.values())
    for device, predicted in working.items():
        sd = _standard_error(measured[device])
        yield (
            device,
            _Observation(
                run.part,
                _place(run.part, device),
                log_ratio=math.log(shares_s[device] * scale / predicted),
                sd=sd if len(working) == 1 else math.hypot(sd, _SPLIT_SD),
            ),
        )


def _standard_error(samples: Sequence[float]) -> float:
    """Relative standard error of a median."""
    width = relative_median_interval(tuple(samples))
    if width is not None:
        return max(width / 1.96, NOISE_FLOOR)
    # Too few for an interval, and for trusting that they are alike: they count as if one sample more had been 3 % off.
    logs = np.log(samples)
    return max(math.sqrt(_ONE_SAMPLE_SD**2 + float(np.square(logs - logs.mean()).sum())) / len(logs), NOISE_FLOOR)


def _place(part: Part, device: str) -> Place:
    threads = np.array([part.threads if device == "cpu" else 1])
    ((decode, count, size, context),) = _places(part.phase, threads, np.array([part.size]), part.context).tolist()
    return bool(decode), count, size, context


def _places(phase: Phase, threads: NDArray[np.int64], sizes: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    """The places of a grid, shape (T X, 4)."""
    places = np.empty((len(threads), len(sizes), 4), np.int64)
    places[..., 0] = phase == "decode"
    places[..., 1] = threads[:, None]
    # A chunk longer than the prompt does the same as one of its length.
    places[..., 2] = sizes if phase == "decode" else np.minimum(sizes, context)
    # Its logarithm counts, and a first token has none.
    places[..., 3] = max(context, 1)
    return places.reshape(-1, 4)


def _covariance(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
    """Prior covariance of offset and smooth part between places (N, 4) and (P, 4), shape (N, P)."""
    same_phase = a[:, None, 0] == b[None, :, 0]
    distance = np.square((np.log2(a[:, None, 1:]) - np.log2(b[None, :, 1:])) / _OCTAVES).sum(axis=-1)
    of_phase = _PHASE_OFFSET_SD**2 + _SMOOTH_SD**2 * np.exp(-distance / 2)
    covariance: Floats = _SHARED_OFFSET_SD**2 + same_phase * of_phase
    return covariance


_VARIANCE = _SHARED_OFFSET_SD**2 + _PHASE_OFFSET_SD**2 + _SMOOTH_SD**2
"""Of offset and smooth part together."""
