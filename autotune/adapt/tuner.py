"""A tuner that follows a running model: it takes in what is observed, and says what should run and why."""

from __future__ import annotations

import os
from typing import NamedTuple

from autotune.adapt.drift import Drift, Watch
from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.moves import Move, Moves, Stop
from autotune.adapt.rules import IDLE_GPU, History, judge, percent
from autotune.adapt.state import Asked, State, read_state, write_state
from autotune.errors import ResultNotFoundError, StoreError, UsageError
from autotune.host import fingerprint
from autotune.loader import load_result
from autotune.options import tune_command
from autotune.records import Configuration, DeviceConfig, Host, Result

PATIENCE = 3
"""Observations in a row that must ask for a change, unless memory does."""

_BUSY_SHARE = 0.5
"""Of the CPU time that its threads would take without a pause: below it they wait for requests."""

_OTHERS = 0.25
"""CPU utilisation beyond the model's own threads from which something else counts as running."""


class Proposal(NamedTuple):
    """What should run from now on.

    Attributes:
        changed: Whether it is another configuration than before.
        configuration: The one that is current now.
        device_config: The same as loaders take it.
        why: A sentence: why it changed, or why it didn't.
    """

    changed: bool
    configuration: Configuration
    device_config: DeviceConfig
    why: str


class AdaptiveTuner:
    """Follows a running model, one observation after the other.

    A proposal counts as followed: the next observation is to be of the configuration that is current by then, and be
    taken once the model runs like that. Under constant metrics the configuration settles, and is none twice (see
    ``moves``). Observing is not safe from several threads at once.

    Args:
        result: What was tuned, on this host.
        host: The host as it is now, whose memory counts and which is compared with the result's; None: as it was then.
        start: What runs now, one of the result's configurations; None: the chosen one.
        model: What ``autotune`` was run on, for the advice; None: the model's own name.
        format: Weight format likewise, where ``autotune`` was run with ``--format``.
        patience: Observations in a row that must ask for a change. Memory pressure is acted on at once.

    Raises:
        ValueError: ``start`` is none of the result's configurations.
        UsageError: ``patience`` is less than 1.
        BenchmarkError: Too little was measured for predictions.
    """

    def __init__(
        self,
        result: Result,
        host: Host | None = None,
        *,
        start: Configuration | None = None,
        model: str | os.PathLike[str] | None = None,
        format: str | None = None,  # noqa: A002 (the option's name)
        patience: int = PATIENCE,
    ) -> None:
        if patience < 1:
            raise UsageError(f"patience must be at least 1 observation, got {patience}")
        self._result = result
        self._command = tune_command(
            os.fspath(model or result.model.name), result.workload.name, format, result.campaign.kernel
        )
        self._patience = patience
        self._moves = Moves(result, host)
        self._host_changed = host is not None and host.fingerprint.cheap != result.host.fingerprint.cheap
        self.reset(start)

    def reset(self, start: Configuration | None = None) -> None:
        """Begin anew, as where the model was loaded again: nothing is learnt yet.

        Args:
            start: As for the class.

        Raises:
            ValueError: As for the class.
        """
        self._at = self._moves.start if start is None else self._moves.reach(start)
        self._watch = Watch(self._moves.noise)
        self._history = History()
        self._asked = Asked()
        self._last: PerformanceMetrics | None = None

    @classmethod
    def for_model(
        cls,
        model: str | os.PathLike[str],
        workload: str = "server",
        format: str | None = None,  # noqa: A002 (the option's name)
        *,
        patience: int = PATIENCE,
    ) -> AdaptiveTuner:
        """A tuner for the result saved for a model on this host.

        Args:
            model: What ``autotune`` was run on: a model file, or the name of a preset.
            workload: ``chat``, ``server`` or ``offline``.
            format: Weight format, where ``autotune`` was run with ``--format``.
            patience: As for the class.

        Raises:
            ModelError: Where the model doesn't exist or can't be read.
            UsageError: Where there is no such workload.
            ResultNotFoundError: Where nothing is saved.
        """
        result = load_result(model, workload, format)
        if result is None:
            command = tune_command(os.fspath(model), workload, format)
            raise ResultNotFoundError(
                f"expected a saved result to adapt for {os.fspath(model)}, workload {workload}, on this host, found "
                f"none: make it with `{command}`"
            )
        return cls(result, model=model, format=format, patience=patience)

    def observe(self, metrics: PerformanceMetrics) -> Proposal:
        """Take in what was observed of the current configuration. Takes microseconds.

        Args:
            metrics: Averages since the last call, or since the model runs as it does.
        """
        stop = self._stop
        self._last = metrics
        if metrics.throughput_tokens_per_s:
            self._watch.observe(metrics.throughput_tokens_per_s / stop.tokens_per_s, busy=_busy(stop, metrics))
        self._history = self._history.seeing(metrics.memory_pressure)
        verdict = judge(self._moves.stops, self._at, metrics, self._watch.ratio, self._history)
        move = verdict.move
        if move is None:
            self._asked = Asked()
            return self._proposal(False, verdict.why)
        times = self._asked.times + 1 if self._asked.kind == move.kind else 1
        self._asked = Asked(move.kind, times)
        wanted = verdict.patience * self._patience
        if times < wanted:
            waiting = (
                f"waiting for {wanted} observations in a row that ask for {_destination(move)}, this is number {times}"
            )
            return self._proposal(False, f"{waiting}: {verdict.why}")
        self._history = self._history.after(move, stop, metrics.memory_pressure)
        self._at, self._asked = move.to, Asked()
        self._watch.restart()
        return self._proposal(True, f"{_change(stop, self._stop)}: {verdict.why}")

    def current(self) -> DeviceConfig:
        """What should run, as loaders take it."""
        return self._stop.device_config

    @property
    def configuration(self) -> Configuration:
        """What should run, in full."""
        return self._stop.configuration

    @property
    def drift(self) -> Drift:
        """How what is observed compares with what was expected, and with what was observed at first."""
        watch = self._watch
        return Drift(watch.ratio, watch.seen, watch.slow_down, self._host_changed, self._why_drifting())

    @property
    def retune_needed(self) -> bool:
        """Whether the result no longer describes what runs: the host changed, or has been slower for long."""
        return self._host_changed or self._watch.slow_down is not None

    @property
    def advice(self) -> str | None:
        """What to do about that, with the command; None: nothing."""
        return f"{self._why_drifting()} Tune again with: {self._command}" if self.retune_needed else None

    def check_host(self) -> bool:
        """Look whether this still is the host that the result was made on; takes about a millisecond.

        A new CPU quota or affinity mask changes it, another GPU or driver does, other versions of libraries do.
        """
        self._host_changed = fingerprint.cheap() != self._result.host.fingerprint.cheap
        return not self._host_changed

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learnt, whole or not at all.

        Raises:
            StoreError: Where it can't be written.
        """
        write_state(
            path,
            State(
                result=State.key_of(self._result),
                configuration=self.configuration,
                history=self._history,
                asked=self._asked,
                learnt=self._watch.learnt,
            ),
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        result: Result,
        host: Host | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        format: str | None = None,  # noqa: A002 (the option's name)
        patience: int = PATIENCE,
    ) -> AdaptiveTuner:
        """Go on where another tuner of the same result was saved.

        Args:
            path: What ``save`` wrote.
            result: The same result.
            host: As for the class.
            model: As for the class.
            format: As for the class.
            patience: As for the class.

        Raises:
            StoreError: Where it can't be read, is damaged, of another version, or of another result.
        """
        state = read_state(path, result)
        try:
            tuner = cls(result, host, start=state.configuration, model=model, format=format, patience=patience)
        except ValueError as error:
            raise StoreError(
                f"{os.fspath(path)}: expected a configuration that the result knows, got another: {error}"
            ) from error
        tuner._history, tuner._asked = state.history, state.asked
        tuner._watch = Watch(tuner._moves.noise, state.learnt)
        return tuner

    @property
    def _stop(self) -> Stop:
        return self._moves.stops[self._at]

    def _proposal(self, changed: bool, why: str) -> Proposal:
        stop = self._stop
        return Proposal(changed, stop.configuration, stop.device_config, _sentence(why))

    def _why_drifting(self) -> str:
        watch = self._watch
        sentences = []
        if self._host_changed:
            sentences.append("This is no longer the host that the result was made on.")
        if watch.slow_down is not None:
            explained = "" if self._last is None else _explained(self._stop, self._last)
            sentences.append(f"It has been {percent(watch.slow_down)} slower than at first for a while{explained}.")
        if watch.ratio is None:
            sentences.append("No throughput was observed of this configuration yet.")
        else:
            times = "observation" if watch.seen == 1 else "observations"
            sentences.append(f"It runs at {percent(watch.ratio)} of the expected throughput ({watch.seen} {times}).")
        return " ".join(sentences)


def _busy(stop: Stop, metrics: PerformanceMetrics) -> bool:
    """Whether the devices had work; where the GPU's utilisation is unknown, that it had."""
    on_cpu = metrics.cpu_utilization >= _BUSY_SHARE * stop.own_cpu_share
    if not stop.on_gpus:
        return on_cpu
    on_gpu = metrics.gpu_utilization is None or metrics.gpu_utilization >= IDLE_GPU
    return on_gpu or (on_cpu and not stop.on_gpus_alone)


def _explained(stop: Stop, metrics: PerformanceMetrics) -> str:
    """What the utilisation tells of a slow-down."""
    if not _busy(stop, metrics):
        return ", but the devices wait: requests are missing, and not speed"
    others = metrics.cpu_utilization - stop.own_cpu_share
    if others >= _OTHERS:
        return f": the CPU is busy with something else as well, for about {percent(others)} of its time"
    return ""


def _change(here: Stop, there: Stop) -> str:
    """What becomes different; threads only where the CPU has work for them."""
    before, after = here.configuration, there.configuration
    changes = []
    if before.batch_size != after.batch_size:
        changes.append(f"a batch of {after.batch_size} instead of {before.batch_size}")
    if (before.device_layers, before.head_device) != (after.device_layers, after.head_device):
        layers = " and ".join(
            f"{count} {'layer' if count == 1 else 'layers'} on {device}"
            for device, count in after.device_layers.items()
        )
        changes.append(f"{layers} with the head on {after.head_device}")
    if before.prefill_chunk != after.prefill_chunk:
        changes.append(f"prompts in chunks of {after.prefill_chunk} instead of {before.prefill_chunk}")
    threads = (after.decode_threads, after.prefill_threads)
    if not there.on_gpus_alone and threads != (before.decode_threads, before.prefill_threads):
        changes.append(f"{threads[0]} threads to decode and {threads[1]} to prefill")
    return ", ".join(changes)


def _destination(move: Move) -> str:
    if move.kind == "more":
        return f"a batch of {move.batch_size}"
    return "layers on the CPU as well" if move.kind == "split" else "what memory was short for"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
