"""The report: one HTML page that stands alone, from a saved result."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jinja2

from autotune import checked
from autotune.evidence import recall
from autotune.options import asking_command, naming_command, remeasure_command
from autotune.outlook import Outlook
from autotune.records import Result
from autotune.report import sections
from autotune.report.measured import Rates
from autotune.report.rivals import rivals_of
from autotune.report.rooflines import rooflines
from autotune.report.step_time import step_time
from autotune.report.tables import corrections_table, held_out_table, kernels_table
from autotune.report.wording import SPACE, brief, percent, rate, seconds, sentence, size
from autotune.summary import configuration, runs, summarize, three_digits

_PROVENANCE = {
    "measured": "measured on its host",
    "imported": "imported from a host of the same kind",
    "replayed": "decided from a recording",
}


class Headline(NamedTuple):
    """One of the figures at the top.

    Attributes:
        label: What it is.
        value: The figure.
        unit: Its unit; empty: it has none.
        detail: How it is known, and how well.
    """

    label: str
    value: str
    unit: str
    detail: str


def render(result: Result, source: str, request: Mapping[str, object] | None = None) -> str:
    """The page of a result.

    Args:
        result: What was saved.
        source: The model as a command names it, for the commands that make the result again.
        request: What was asked for beside the workload, as saved with the result; None: nothing.

    Raises:
        BenchmarkError: The result's measurements don't make a cost model.
    """
    outlook, rates = Outlook(result), Rates(result)
    cost_model = recall(result, result.host).cost_model
    confirmation, decision = result.confirmation, result.decision
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autotune.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        result=result,
        provenance=_provenance(result),
        chosen=configuration(decision.chosen),
        headlines=headlines(result, outlook),
        curves=sections.curve_figures(outlook, rates),
        curve_legend=sections.CURVE_LEGEND,
        roofline_legend=sections.ROOFLINE_LEGEND,
        step=sections.step_figures(step_time(result, cost_model)),
        rooflines=[sections.roofline_figure(each) for each in rooflines(result, cost_model)],
        memory=sections.memory_figure(decision.chosen.predicted.memory, confirmation),
        trials=None if confirmation is None else sections.trials_figure(result, confirmation),
        searched=_searched(result),
        rivals=sections.rivals_figure(rivals_of(outlook, rates)),
        held_out=held_out_table((result.cost_model, *result.gpu_cost_models)),
        corrections=None if confirmation is None else corrections_table(confirmation.corrections),
        kernels=kernels_table(result),
        facts=_facts(result),
        commands=_commands(result, source, request or {}),
    )


def headlines(result: Result, outlook: Outlook) -> tuple[Headline, ...]:
    """The figures to know first: as measured where the configuration was chosen by running it."""
    decision, chosen = result.decision, outlook.chosen
    predicted = decision.chosen.predicted
    run = result.confirmation.chosen if result.confirmed and result.confirmation is not None else None
    if run is None:
        low, high = map(three_digits, chosen.tokens_per_s_within)
        found = [
            _headline("Output, predicted", rate(predicted.tokens_per_s), f"95 %: {low} to {high}; not run"),
            _headline("Time per output token", seconds(predicted.tpot_s), _between(chosen.tpot_s_within)),
            _headline("Time to first token", seconds(predicted.ttft_s), _between(chosen.ttft_s_within)),
        ]
    else:
        interval = "" if run.relative_interval is None else f"±{percent(run.relative_interval)}; "
        found = [
            _headline(
                "Output, measured",
                rate(run.tokens_per_s),
                f"{interval}predicted {three_digits(predicted.tokens_per_s)}",
            ),
            _headline("Time per output token", seconds(run.tpot_s), f"predicted {seconds(predicted.tpot_s)}"),
            _headline("Time to first token", seconds(run.ttft_s), f"predicted {seconds(predicted.ttft_s)}"),
        ]
    if decision.speedup_over_default is not None and decision.default is not None:
        times = f"{three_digits(decision.speedup_over_default)}×"
        both_run = run is not None and result.confirmation is not None and result.confirmation.default is not None
        default = f"{'measured' if both_run else 'predicted'}, against {brief(decision.default.configuration)}"
        found.append(_headline("Speed-up over the default", times, default))
    total = size(sum(use.total_bytes for use in predicted.memory))
    plans = "; ".join(
        f"{size(use.total_bytes)} of {size(use.available_bytes)} on {use.device}" for use in predicted.memory
    )
    return (*found, _headline("Memory planned", total, plans))


def _headline(label: str, quantity: str, detail: str) -> Headline:
    value, _, unit = quantity.partition(SPACE)
    return Headline(label, value, unit, detail)


def _between(within: tuple[float, float]) -> str:
    return f"95 %: {seconds(within[0])} to {seconds(within[1])}"


def _provenance(result: Result) -> str:
    words = _PROVENANCE[result.provenance]
    how = "chosen by running it" if result.confirmed else "predicted, not run"
    return f"{words}, {how} · {result.created_at[:10]}"


def _searched(result: Result) -> list[str]:
    """How the configuration was found, in sentences."""
    search = result.decision.search
    found = [
        f"Of {search.points:,} configurations {search.feasible:,} fit the memory and keep the limits; the cost model "
        f"ranked all of them in {seconds(search.ranking_time_s)}."
    ]
    if search.study is not None:
        study = search.study
        gap = "found nothing feasible" if study.gap is None else f"came within {percent(study.gap)} of the exact best"
        found.append(
            f"An Optuna study over the same predictions ({study.sampler}, seed {study.seed}) {gap} in "
            f"{study.trials} trials, {study.feasible_trials} of them feasible."
        )
    if result.confirmation is None:
        found.append("No configuration was run: the figures above are predictions.")
    return found + [f"{sentence(text)}." for label, text in runs(result) if label == "run"]


def _facts(result: Result) -> dict[str, list[str]]:
    """Host, measurements and versions: what there is to say under each label."""
    summary = itertools.takewhile(lambda line: line != ("", ""), summarize(result, None))
    skipped = {"kernels", "held-out error"}
    found: dict[str, list[str]] = {}
    for label, value in summary:
        if label not in skipped and not label.startswith(" "):
            found.setdefault(label, []).append(value)
    versions, host = result.host.versions, result.host
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.libraries.items()))
    found["host name"] = [host.label, host.operating_system]
    if host.fingerprint.hardware_class:
        found["hardware class"] = [host.fingerprint.hardware_class]
    if result.origin is not None:
        found["measured on"] = [
            f"{result.origin.host_label} ({result.origin.hardware_class}), {result.origin.measured_at}"
        ]
    if told := checked.lines(result):
        found["last check"] = [value for _, value in told]
    if result.model.notes:
        found["assumed"] = list(result.model.notes)
    spent = [f"{seconds(result.campaign.spent_s)} timing kernels"]
    if result.confirmation is not None:
        spent.append(f"{seconds(result.confirmation.spent_s)} running configurations")
    found["time spent"] = [f"{', '.join(spent)}; the command that decided took {seconds(result.tune_time_s)}"]
    found["decided"] = [result.created_at]
    found["versions"] = [f"autotune {versions.autotune}, Python {versions.python}, {libraries}"]
    found["kernel sources"] = [f"{versions.kernels}, measuring policy {versions.measuring_policy}"]
    if host.unknown:
        found["not revealed"] = [", ".join(host.unknown)]
    return found


def _commands(result: Result, source: str, request: Mapping[str, object]) -> list[tuple[str, str]]:
    """Commands, and what they are for."""
    asked = {**request, "workload": result.workload.name}
    return [
        (remeasure_command(source, asked), "measure, choose and save anew on the host you are on"),
        (asking_command("retune", source, asked), "choose again from what was measured, without measuring"),
        (naming_command("confirm", source, asked), "run this configuration for some seconds: do its figures hold?"),
        (naming_command("explain", source, asked), "the reasons as text, and what-ifs"),
        (asking_command("verify", source, asked), "run all configurations and tell how far this one is from the best"),
    ]
