"""What the charts are drawn of: it agrees with the result, with the cost model and with what was run."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from autotune.costmodel.bottleneck import handovers_s
from autotune.evidence import recall
from autotune.outlook import Outlook
from autotune.records import PartRun, Result, Trial, median
from autotune.report.curve_chart import draw_curve
from autotune.report.curves import Curve, Mark, blocked, curves_of, gpu_layers
from autotune.report.measured import Rates
from autotune.report.rivals import CHOSEN, rivals_of
from autotune.report.roofline_chart import draw_roofline
from autotune.report.rooflines import rooflines
from autotune.report.step_time import HANDOVER, HEAD, KINDS, step_time
from autotune.report.tables import roofline_table
from autotune.report.trials import steps_of
from autotune.report.wording import brief, ranges, seconds, size
from tests.report.results import confirm, measured, mixed, replayed

ALL = ["predicted", "confirmed", "hybrid", "two_gpus"]


@pytest.fixture(params=ALL)
def result(request: pytest.FixtureRequest) -> Result:
    """Any of them."""
    found: Result = request.getfixturevalue(request.param)
    return found


def curves(result: Result) -> dict[str, Curve]:
    return {curve.title: curve for curve in curves_of(Outlook(result), Rates(result))}


# Curves


def test_the_chosen_configuration_is_marked_on_every_curve_once(result: Result) -> None:
    """With the same prediction on all of them: they cross there."""
    chosen = [[mark for mark in curve.marks if mark.chosen] for curve in curves(result).values()]
    assert all(len(marks) == 1 for marks in chosen)
    assert len({marks[0].predicted for marks in chosen}) == 1
    for curve in curves(result).values():
        assert [mark.value for mark in curve.marks] == sorted({mark.value for mark in curve.marks})
        for mark in curve.marks:
            if mark.predicted is None or mark.within is None:
                assert mark.obstacles
            else:
                assert mark.within[0] <= mark.predicted <= mark.within[1]


def test_the_curves_are_those_that_a_host_has(predicted: Result, hybrid: Result, two_gpus: Result) -> None:
    """Decode threads where the CPU works, layers on GPUs where there are any; three, to stand side by side."""
    assert list(curves(predicted)) == ["Decode threads", "Batch size", "Prefill chunk"]
    assert list(curves(hybrid)) == ["Decode threads", "Batch size", "Layers on GPUs"]
    assert list(curves(two_gpus)) == ["Batch size", "Layers on GPUs", "Prefill chunk"]


def test_layers_on_gpus_go_from_none_to_all(hybrid: Result) -> None:
    """As the split curve has them; chosen where the chosen configuration is."""
    marks = curves(hybrid)["Layers on GPUs"].marks
    assert [mark.value for mark in marks] == list(range(len(hybrid.model.layers) + 1))
    assert [mark.value for mark in marks if mark.chosen] == [gpu_layers(hybrid.decision.chosen.configuration)]
    by_layers = {split.gpu_layers: split.tokens_per_s for split in hybrid.decision.split_curve}
    assert all(mark.predicted == pytest.approx(by_layers[mark.value]) for mark in marks)


def test_a_number_of_layers_that_nothing_fits_with_has_no_prediction(hybrid: Result) -> None:
    """It is shown as impossible, with the reason."""
    decision = hybrid.decision
    last = replace(decision.split_curve[-1], best=None, tokens_per_s=None, tpot_s=None, broken="memory")
    changed = replace(hybrid, decision=replace(decision, split_curve=(*decision.split_curve[:-1], last)))
    mark = curves(changed)["Layers on GPUs"].marks[-1]
    assert (mark.predicted, mark.within) == (None, None)
    assert mark.obstacles == ("No configuration with so many fits the memory.",)


def test_what_was_run_is_measured_on_the_curves(confirmed: Result, predicted: Result) -> None:
    """The chosen one with the figures of its runs; nothing where nothing was run."""
    assert not any(mark.measured for curve in curves(predicted).values() for mark in curve.marks)
    assert confirmed.confirmation is not None
    assert confirmed.confirmation.chosen is not None
    for curve in curves(confirmed).values():
        (mark,) = (mark for mark in curve.marks if mark.chosen)
        assert mark.measured == confirmed.confirmation.chosen.tokens_per_s
        assert mark.measured_within is not None
        assert mark.measured_within[0] < mark.measured < mark.measured_within[1]


def test_neighbours_that_can_not_be_had_are_told_together() -> None:
    """By their ends, with the first one's reason."""

    def mark(value: int, *obstacles: str) -> Mark:
        return Mark(value, 1.0, (0.9, 1.1), None, None, chosen=False, obstacles=obstacles)

    marks = (mark(1, "a"), mark(2), mark(4, "b", "c"), mark(8, "d"))
    found = blocked(Curve("Batch size", "", marks, doubling=True))
    assert [(each.values, each.obstacle) for each in found] == [("1", "a"), ("4 to 8", "b")]


def test_values_that_lie_close_together_are_labelled_where_there_is_room() -> None:
    """The last always; every value has its tick."""
    values = (1, 2, 3, 4, 6, 8, 128)
    marks = tuple(Mark(value, 1.0, (0.9, 1.1), None, None, value == 8, ()) for value in values)
    drawing = draw_curve(Curve("Decode threads", "", marks))
    labels = re.findall(r'text-anchor="middle">(\d+)<', drawing)
    assert labels[-1] == "128"
    assert 1 < len(labels) < len(values)
    assert "chosen 8: 1 predicted" in drawing


# Intervals


def test_few_samples_give_a_wider_interval_than_many(predicted: Result) -> None:
    """Where they can't tell their own spread, the host's noise is taken."""
    chosen = predicted.decision.chosen.configuration
    widths = []
    for samples in (2, 40):
        rate = Rates(confirm(predicted, samples=samples)).of(chosen)
        assert rate is not None
        widths.append(rate.within[1] / rate.within[0] - 1)
    assert widths[0] > 2 * widths[1] > 0


def test_a_configuration_of_which_one_half_was_run_is_not_measured(confirmed: Result) -> None:
    """Nor one that was not run at all."""
    chosen = confirmed.decision.chosen.configuration
    rates = Rates(confirmed)
    assert rates.of(chosen) is not None
    assert rates.of(replace(chosen, prefill_chunk=32)) is None


# A decode step


def test_the_pieces_of_a_step_add_up_to_its_predicted_time(result: Result) -> None:
    """Layers, head and handing over leave nothing of the predicted time per output token."""
    step = step_time(result, recall(result, result.host).cost_model)
    tpot_s = Outlook(result).chosen.predicted.tpot_s
    assert step.time_s == pytest.approx(tpot_s, rel=1e-6)
    of_layers = sum(group.layer_s * len(group.numbers) for group in step.groups)
    rest = sum(p.time_s for device in step.devices for p in device.pieces if p.kind in (HEAD, HANDOVER))
    assert of_layers + rest == pytest.approx(tpot_s, rel=1e-6)
    assert {piece.kind for device in step.devices for piece in device.pieces} <= set(KINDS)


def test_every_layer_is_in_one_group_on_its_device(result: Result) -> None:
    """Counted from 1 in the order data flows."""
    step = step_time(result, recall(result, result.host).cost_model)
    numbers = [number for group in step.groups for number in group.numbers]
    assert sorted(numbers) == list(range(1, len(result.model.layers) + 1))
    for device, count in result.decision.chosen.configuration.device_layers.items():
        assert sum(len(group.numbers) for group in step.groups if group.device == device) == count


def test_layers_that_differ_are_groups_of_their_own(predicted: Result) -> None:
    """Here every third layer has a smaller site."""
    step = step_time(mixed(predicted), recall(predicted, predicted.host).cost_model)
    assert [group.numbers[:3] for group in step.groups] == [[1, 2, 4], [3, 6, 9]]
    assert step.groups[1].layer_s < step.groups[0].layer_s


@pytest.mark.parametrize("name", ["hybrid", "two_gpus"])
def test_handing_over_is_what_the_cost_model_says(name: str, request: pytest.FixtureRequest) -> None:
    """Tokens from the CPU, through each GPU, and back."""
    result: Result = request.getfixturevalue(name)
    cost_model = recall(result, result.host).cost_model
    pieces = [piece for device in step_time(result, cost_model).devices for piece in device.pieces]
    expected = handovers_s(cost_model.models, result.model, result.workload, result.decision.chosen.configuration)
    assert sum(piece.time_s for piece in pieces if piece.kind == HANDOVER) == pytest.approx(expected, rel=1e-6)


def test_a_step_that_was_run_has_its_measured_time(confirmed: Result, predicted: Result) -> None:
    """Of the whole and of each device; None where it was not run."""
    cost_model = recall(confirmed, confirmed.host).cost_model
    step = step_time(confirmed, cost_model)
    assert confirmed.confirmation is not None
    run: PartRun = confirmed.confirmation.runs[0]
    assert step.measured_s == run.median_s
    assert [device.measured_s for device in step.devices] == [median(run.device_s["cpu"])]
    assert step_time(predicted, cost_model).measured_s is None


# Rooflines


def test_a_product_that_was_timed_lies_where_it_was_measured(predicted: Result) -> None:
    """Its operations over the median time of its fastest kernel."""
    (found,) = rooflines(predicted, recall(predicted, predicted.host).cost_model)
    threads = predicted.decision.chosen.configuration.decode_threads
    timed = [point for point in found.points if point.timed and point.phase == "decode"]
    assert timed
    for point in timed:
        times = [
            each.median_s
            for each in predicted.campaign.measurements()
            if (each.point.format, each.point.n_out, each.point.k_in) == tuple(point.product)
            and (each.point.m, each.point.threads, each.point.device) == (point.tokens, threads, "cpu")
        ]
        operations = 2 * point.tokens * point.product.n_out * point.product.k_in
        assert point.operations_per_s == pytest.approx(operations / min(times), rel=0.01)


def test_there_is_a_roofline_for_each_kind_of_device(result: Result) -> None:
    """Identical GPUs share one; a prompt's head, which is of one token, is left out."""
    found = rooflines(result, recall(result, result.host).cost_model)
    devices = [device for each in found for device in each.devices]
    assert devices == ["cpu", *result.host.gpus.usable]
    assert len(found) == 1 + len(result.gpu_cost_models)
    for each in found:
        names = {phase: [p.sites for p in each.points if p.phase == phase] for phase in ("decode", "prefill")}
        assert "head" in names["decode"]
        assert "head" not in names["prefill"]
        assert all("_" not in name for name in itertools.chain(*names.values()))
        assert [ceiling.threads for ceiling in each.ceilings] == sorted({ceiling.threads for ceiling in each.ceilings})


def test_the_ceilings_are_those_that_were_measured(predicted: Result) -> None:
    """At the thread counts that were timed."""
    (found,) = rooflines(predicted, recall(predicted, predicted.host).cost_model)
    for ceiling in found.ceilings:
        rate = predicted.cost_model.read_bytes_per_s[str(ceiling.threads)]
        assert ceiling.read_bytes_per_s == pytest.approx(rate, rel=0.05)


def test_a_ceiling_on_threads_that_were_not_timed_does_not_pass_for_timed(predicted: Result) -> None:
    """Its row says that it is interpolated, as a product's does."""
    points = [
        each for each in predicted.campaign.outcomes if each.point.op not in ("read", "peak") or each.point.threads > 1
    ]
    alone = replace(predicted, campaign=replace(predicted.campaign, outcomes=tuple(points)))
    (found,) = rooflines(alone, recall(alone, alone.host).cost_model)
    assert [(each.threads, each.timed) for each in found.ceilings] == [(1, False), (2, True)]
    sources = [row[-1] for row in roofline_table(found).rows if row[0].startswith("ceiling")]
    assert sources == ["interpolated", "timed"]


def test_every_ceiling_is_within_its_chart(result: Result) -> None:
    """That of one thread too, however far below the others it lies."""
    for roofline in rooflines(result, recall(result, result.host).cost_model):
        drawing = ET.fromstring(draw_roofline(roofline))
        paths = [each.get("d", "") for each in drawing if (each.get("class") or "").startswith("ceiling")]
        flat = [float(path.split()[-1]) for path in paths]
        grid = [float(each.get("y1", "0")) for each in drawing if each.get("class") in ("grid", "axis")]
        assert len(flat) == len(roofline.ceilings)
        assert sorted(flat, reverse=True) == flat
        assert all(min(grid) < y < max(grid) - 5 for y in flat)


# The search


def test_the_incumbent_never_gets_worse(confirmed: Result) -> None:
    """It begins with the first that keeps the limits, and ends with the best."""
    assert confirmed.confirmation is not None
    steps = steps_of(confirmed, confirmed.confirmation)
    values = [step.incumbent for step in steps if step.incumbent is not None]
    assert values == sorted(values)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert [step.leads for step in steps] == [True, True, False, False, False]
    assert [step.chosen for step in steps] == [False, True, False, False, False]
    assert [step.value is None for step in steps] == [False, False, True, True, True]


def test_a_trial_over_a_limit_never_leads(confirmed: Result) -> None:
    """However many tokens per second it gives."""
    assert confirmed.confirmation is not None
    chosen = confirmed.decision.chosen.configuration
    slow = Trial(chosen, "could win", "complete", None, measured(confirmed, replace(chosen, batch_size=64), tpot_s=0.5))
    steps = steps_of(confirmed, replace(confirmed.confirmation, trials=(slow,)))
    assert steps[0].value is not None
    assert (steps[0].leads, steps[0].incumbent) == (False, None)


def test_a_search_for_chat_is_after_the_shortest_time_per_token(confirmed: Result) -> None:
    """And for another workload than the result's, that one's limits count."""
    assert confirmed.confirmation is not None
    chosen = confirmed.decision.chosen.configuration
    trials = tuple(
        Trial(chosen, "could win", "complete", None, measured(confirmed, chosen, tpot_s)) for tpot_s in (0.3, 0.2, 0.25)
    )
    chat = replace(confirmed.workload, name="chat", max_tpot_s=None, max_ttft_s=None)
    steps = steps_of(confirmed, replace(confirmed.confirmation, trials=trials, workload=chat))
    assert [step.incumbent for step in steps] == [0.3, 0.2, 0.2]


# Baselines


def test_the_baselines_stand_beside_the_chosen_one(result: Result) -> None:
    """It comes first; all that the host has are there, and none that is possible is faster by prediction."""
    rivals = rivals_of(Outlook(result), Rates(result))
    names = [name for rival in rivals for name in rival.names]
    assert names[0] == CHOSEN
    assert {"fallback", "all logical cores", "physical cores", "analytic rule"} <= set(names)
    assert ("everything on the GPU" in names) == bool(result.host.gpus.usable)
    assert all(rival.slowdown >= 0.99 for rival in rivals if not rival.prospect.obstacles)


def test_a_baseline_that_was_run_has_measured_figures(confirmed: Result) -> None:
    """And the slow-down against the chosen one is of both as measured."""
    assert confirmed.confirmation is not None
    assert confirmed.confirmation.default is not None
    rivals = {name: rival for rival in rivals_of(Outlook(confirmed), Rates(confirmed)) for name in rival.names}
    fallback, chosen = rivals["fallback"], rivals[CHOSEN]
    assert fallback.tokens_per_s == confirmed.confirmation.default.tokens_per_s
    assert fallback.slowdown == pytest.approx(chosen.tokens_per_s / fallback.tokens_per_s)
    unrun = rivals["analytic rule"]
    assert unrun.rate is None
    assert unrun.tokens_per_s == unrun.prospect.predicted.tokens_per_s


def test_for_chat_a_baseline_is_compared_by_its_time_per_token() -> None:
    """As predicted where it was not run, as measured where it was."""
    chat = replayed("server-slow-gpu", "bitnet-b1.58-2B-4T", "chat")
    for result in (chat, confirm(chat)):
        rivals = {name: rival for rival in rivals_of(Outlook(result), Rates(result)) for name in rival.names}
        fallback, chosen = rivals["fallback"], rivals[CHOSEN]
        tpots = [
            rival.prospect.predicted.tpot_s if rival.rate is None else rival.rate.measured.tpot_s
            for rival in (fallback, chosen)
        ]
        assert fallback.slowdown == pytest.approx(tpots[0] / tpots[1])


# Words


def test_quantities_have_three_digits_and_a_unit() -> None:
    """The unknown has neither."""
    found = [seconds(0.0927), seconds(12.34), seconds(4.5e-5), seconds(None), size(2.5e9), size(None)]
    assert [each.replace("\N{NO-BREAK SPACE}", " ") for each in found] == [
        "92.7 ms",
        "12.3 s",
        "45 µs",
        "–",
        "2.5 GB",
        "–",
    ]


def test_layer_numbers_are_put_together() -> None:
    """Runs by their ends."""
    assert ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"


def test_a_configuration_in_brief_says_where_everything_is(predicted: Result, two_gpus: Result) -> None:
    """Threads only where the CPU works, and twice where decode and prefill differ."""
    chosen = replace(predicted.decision.chosen.configuration, decode_threads=1, prefill_threads=2)
    assert brief(chosen).startswith("30 layers on cpu, 1 and 2 threads, batch ")
    assert "thread" not in brief(two_gpus.decision.chosen.configuration)
    assert "head on cuda:1" in brief(two_gpus.decision.chosen.configuration)
