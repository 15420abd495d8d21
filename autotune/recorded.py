"""Hosts on file: record what was measured on one, and decide for it where it isn't."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from autotune.bench.campaign import Progress
from autotune.bench.plan import describe_first_missing
from autotune.conclusion import conclude
from autotune.costmodel.heldout import fit
from autotune.errors import ResultNotFoundError, UsageError
from autotune.evidence import Evidence, gather, plans, workload_of
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.options import GPU_BUDGET_S, RECORD_BUDGET_S, Options, split_budget
from autotune.records import Campaign, Host, Model, Result, Workload
from autotune.room import check_fits
from autotune.search.study import TRIALS
from autotune.search.variants import read_variants
from autotune.store.recording import Recording


def record(models: Sequence[str], *, budget_s: float | None, progress: Progress | None = None) -> Recording:
    """Time models on this host and return all that was measured, to be replayed where the host isn't.

    The points are those of the workload with the largest batches, so that a replay can answer for the others as well.

    Args:
        models: Model files or presets.
        budget_s: Wall time for each; None: the default.
        progress: Told how far the benchmark of a model is.

    Raises:
        AutotuneError: As for ``tune``.
    """
    options = Options(workload="offline")
    host = detect()
    for model in models:  # before the first one is timed
        variants = read_variants(model, options.format, find_kernels(host))
        check_fits(variants, workload_of(options, variants[0], host), host)
    usual_s = RECORD_BUDGET_S + (GPU_BUDGET_S if host.gpus.usable else 0.0)
    budget = split_budget(usual_s if budget_s is None else budget_s, confirm=False)
    found = [
        gather(model, options, budget_s=budget.benchmark_s, quick=False, whole=True, progress=progress)
        for model in models
    ]
    names = ", ".join(evidence.models[0].name for evidence in found)
    return Recording(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        synthetic=False,
        note=f"measured with {names}",
        host=found[0].host,
        campaigns=tuple(evidence.campaign for evidence in found),
    )


def replay(recording: Recording, model: str | os.PathLike[str], options: Options | None = None) -> Result:
    """Decide for a recorded host from its measurements: all of ``tune`` but detecting, timing and saving.

    Args:
        recording: The host, and what was measured on it.
        model: A model that it was recorded with, or one whose shapes were timed as well.
        options: As for ``tune``.

    Raises:
        ModelError, MemoryLimitError, ConstraintError: As for ``tune``.
        UsageError: As for ``tune``; or a kernel was asked for, which is about timing.
        ResultNotFoundError: The recording doesn't hold what the model needs.
    """
    started = time.monotonic()
    options = options or Options()
    if options.kernel is not None:
        raise UsageError("--kernel is about timing, and --replay times nothing: leave one of them out")
    host, missing = recording.host, []
    for campaign in recording.campaigns:
        models = read_variants(model, options.format, campaign.kernels, host.cpu.architecture)
        workload = workload_of(options, models[0], host)
        wanting = _wanting(campaign, models, host, workload)
        if wanting is None:
            cost_model, reports = fit(campaign)
            result = conclude(
                Evidence(models, host, campaign, cost_model, reports), workload, started=started, trials=TRIALS
            )
            kind = "a synthetic host, which nobody measured" if recording.synthetic else "a recorded host"
            return replace(
                result, provenance="replayed", warnings=(f"decided for {kind}: {recording.note}", *result.warnings)
            )
        missing.append(wanting)
    what = f"the recording of {host.label} has no measurements of {os.fspath(model)}"
    raise ResultNotFoundError(f"{what}: expected {missing[0]}" if missing else f"{what}: it holds none at all")


def _wanting(campaign: Campaign, models: Sequence[Model], host: Host, workload: Workload) -> str | None:
    """What a decision can't do without and a recorded campaign lacks, in words; None: it is all there.

    A GPU that could not be timed is no part of the decision, so nothing of it is needed.
    """
    tasks, gpus = plans(models, host, workload, campaign.kernels or find_kernels(host), None, quick=True)
    timed = {run.devices[0] for run in campaign.gpus if run.failure is None}
    needed = (*tasks, *(task for gpu in gpus if gpu.devices[0] in timed for task in gpu.tasks))
    return describe_first_missing(needed, (found.point for found in campaign.measurements()))
