"""Runs what was predicted: the best configurations on the reference engine, and the decision that follows from that."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from autotune.conclusion import conclude, noise_of
from autotune.costmodel.kernels import fastest_kernels
from autotune.costmodel.points import counted, fastest, timed_devices
from autotune.engine.reference import ReferenceEngine
from autotune.engine.stages import Kernels
from autotune.errors import BenchmarkError
from autotune.evidence import Evidence, axes_of
from autotune.model import memory
from autotune.records import Campaign, Configuration, Confirmation, Host, Measured, Model, Result, Workload
from autotune.room import room_on
from autotune.search.baselines import fallback
from autotune.search.decide import Proven
from autotune.search.measured import Outcome, Running, search
from autotune.search.variants import format_of
from autotune.search.wording import compared

_LARGEST_NOISE = 0.03
"""Relative; runs that differ by more are told apart on a host of any noise: by their own samples, of which more are
taken then."""


def confirm(
    evidence: Evidence,
    predicted: Result,
    *,
    budget_s: float,
    started: float,
    storage: str | None = None,
    running: Running | None = None,
    seed: int = 0,
) -> Result:
    """A result whose configuration was run and is the best of those that were.

    Args:
        evidence: What the prediction rests on.
        predicted: The predicted result: it gives workload and weight format, and stands where nothing can be run.
        budget_s: Wall time for the runs, the engine's start included.
        started: When the work began, on the monotonic clock.
        storage: URL of the database for the search; None: it is kept in memory.
        running: Told how far it is.
        seed: Of the search.

    Raises:
        StoreError, UsageError: The database can't be used.
    """
    model, workload = predicted.model, predicted.workload
    cost_model, campaign, host = evidence.cost_model, evidence.campaign, evidence.host
    same = evidence.confirmation is not None and evidence.run_format == format_of(model)
    earlier = evidence.confirmation.runs if evidence.confirmation is not None and same else ()
    try:
        outcome = search(
            open_engine(evidence, model),
            cost_model=cost_model,
            model=model,
            workload=workload,
            host=host,
            room=room_on(host, campaign, cost_model.devices),
            default=fallback(model, host, workload),
            **axes_of(host, cost_model, workload)._asdict(),
            noise=min(noise_of(campaign), _LARGEST_NOISE),
            budget_s=budget_s,
            known=earlier,
            storage=storage,
            identity=_identity(predicted),
            seed=seed,
            running=running,
        )
    except BenchmarkError as error:
        return replace(predicted, warnings=(*predicted.warnings, f"nothing was run, so all is predicted: {error}"))
    proven = None if outcome.winner is None else _proven(outcome.confirmation, outcome.winner, model, workload)
    evidence = evidence._replace(
        cost_model=outcome.cost_model, confirmation=outcome.confirmation, run_format=format_of(model)
    )
    result = conclude(evidence, workload, started=started, trials=None, proven=proven)
    study = predicted.decision.search.study
    warnings = result.warnings
    if proven is None:
        warnings = (*warnings, f"nothing that was run could be chosen, so all is predicted: {_obstacle(outcome)}")
    decision = replace(result.decision, search=replace(result.decision.search, study=study))
    return replace(result, decision=decision, warnings=warnings)


def open_engine(evidence: Evidence, model: Model) -> ReferenceEngine:
    """The reference engine for a model on this host, with the kernels that were the fastest; not started yet."""
    return ReferenceEngine(model, evidence.host, kernels_for(evidence.campaign, model))


def kernels_for(campaign: Campaign, model: Model) -> Callable[[Configuration], Kernels]:
    """Tells which kernels to run a configuration with: those that were the fastest when they were timed."""
    backends = {}
    for device, timed in timed_devices(campaign).items():
        found = [*counted(campaign, "layer_ops", timed), *counted(campaign, "attention", timed)]
        # Of kernels that did the same, the one that was faster the most often.
        best = fastest(campaign, "layer_ops", timed) | fastest(campaign, "attention", timed)
        won = Counter(
            each.point.kernel for each in found if each.median_s <= best[replace(each.point, kernel="", launch=None)]
        )
        backends[device] = won.most_common(1)[0][0]
    return lambda configuration: Kernels(fastest_kernels(campaign, model, configuration), backends)


def _obstacle(outcome: Outcome) -> str:
    """Why no configuration that was run is the answer."""
    confirmation = outcome.confirmation
    if confirmation.stopped == "failed" and confirmation.failures:
        return confirmation.failures[0].message
    if confirmation.stopped == "budget":
        return "the time was up before the best could be run to its end; --budget allows more"
    reasons = [trial.reason for trial in confirmation.trials if trial.reason is not None]
    return reasons[0] if reasons else "none keeps the limits as measured"


def _identity(predicted: Result) -> str:
    """What must be the same for a search to go on where another one was stopped: host, software, model and wish.

    And the benchmark: after a new one, what was run before is no longer of the same time.
    """
    model, workload = predicted.model, predicted.workload
    wish = msgspec.json.encode((model.source_digest, format_of(model), workload, predicted.campaign))
    digest = hashlib.sha256(wish + predicted.host.fingerprint.full.encode()).hexdigest()[:16]
    return f"{model.name} {workload.name} {digest}"


def proven_before(saved: Result, host: Host) -> Proven | None:
    """What running configurations found for a saved result.

    None where it is a prediction, or where what was found doesn't fit the memory that ``host`` has now.
    """
    confirmation, winner = saved.confirmation, saved.decision.chosen.configuration
    if confirmation is None or not saved.confirmed:
        return None
    room = room_on(host, saved.campaign, tuple(timed_devices(saved.campaign)))
    uses = memory.plan(saved.model, winner, saved.workload.context_tokens, room)
    fits = all(use.total_bytes <= use.available_bytes for use in uses)
    return _proven(confirmation, winner, saved.model, saved.workload) if fits else None


def _proven(confirmation: Confirmation, winner: Configuration, model: Model, workload: Workload) -> Proven | None:
    """A search's winner and why; None where it was not run to its end."""
    if confirmation.chosen is None:
        return None
    chosen, default = confirmation.chosen, confirmation.default
    speedup = None if default is None else _cost_s(default, workload) / _cost_s(chosen, workload)
    return Proven(
        format=format_of(model),
        winner=winner,
        runner_up=confirmation.runner_up,
        verdict=_verdict(confirmation, workload),
        speedup=speedup,
    )


def _verdict(confirmation: Confirmation, workload: Workload) -> str:
    """What was found by running, in a sentence."""
    chosen, default = confirmation.chosen, confirmation.default
    complete = [trial for trial in confirmation.trials if trial.state == "complete"]
    parts = [f"Of {len(complete)} configuration{'' if len(complete) == 1 else 's'} run to the end this is the best"]
    if chosen is not None and default is not None:
        times = compared(_cost_s(default, workload), _cost_s(chosen, workload))
        parts.append(f"the default was {times}" if default != chosen else "it is the default")
    if confirmation.stopped == "decided":
        parts.append("nothing that was not run could win beyond the noise")
    else:
        parts.append("the time was up before all that could win had been run")
    return f"{parts[0]}: {', and '.join(parts[1:])}."


def _cost_s(measured: Measured, workload: Workload) -> float:
    """What the workload minimises."""
    return measured.tpot_s if workload.name == "chat" else 1 / measured.tokens_per_s
