from __future__ import annotations

from msgspec.structs import replace

from autotune.explanation import explain, to_json
from autotune.records import SplitFigures
from tests.builders import build_confirmed_result, build_gpu_result, build_result


def test_the_curve_has_a_bar_per_number_of_layers_and_marks_the_chosen() -> None:
    """Bars are in proportion to tokens/s; what does not fit has none."""
    curve = [value for label, value in explain(build_gpu_result()) if label == "split"][1:]
    assert curve == [
        f"0 {'█' * 15} 200 (batch 4, TPOT 20 ms)",
        f"1 {'█' * 30} 400 (batch 4, TPOT 10 ms, head on GPU) <- chosen",
        "2 does not fit the memory",
    ]


def test_a_split_that_breaks_a_limit_is_told_from_one_that_does_not_fit() -> None:
    result = build_gpu_result()
    curve = (*result.decision.split_curve[:2], SplitFigures(2, None, None, None, "limits"))
    broken = replace(result, decision=replace(result.decision, split_curve=curve))
    assert explain(broken)[-1] == ("split", "2 fits, but not within the limits")


def test_reasons_and_what_binds_stand_before_the_curve() -> None:
    lines = explain(build_gpu_result())
    assert ("why", "decode reads every weight once per step") in lines
    assert ("bound by", "memory bandwidth") in lines
    assert [label for label, _ in lines].index("bound by") < [label for label, _ in lines].index("split")


def test_what_was_run_stands_beside_what_binds() -> None:
    """The reasons of a result that was confirmed rest on it; one that was not has no such line."""
    lines = explain(build_confirmed_result())
    assert [label for label, _ in lines if label in ("bound by", "run", "corrected", "split")] == [
        *("bound by", "run", "run", "corrected", "split"),
    ]
    assert not {"run", "corrected"} & {label for label, _ in explain(build_result())}


def test_without_a_gpu_there_is_no_curve() -> None:
    assert explain(build_result())[-1] == (
        "split", "all layers are on the CPU: there is no GPU that was timed"
    )  # fmt: skip


def test_as_json_it_is_the_decision_without_its_evidence() -> None:
    result = build_gpu_result()
    assert to_json(result)["split_curve"] == result.decision.split_curve
    assert to_json(result)["reasons"] == result.decision.reasons
