from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from msgspec.structs import replace

from autotune.explanation import answer_to_json, explain, explain_answer, to_json
from autotune.outlook import Prospect
from autotune.records import Candidate, FormatCandidate, Result, SplitFigures, Trial
from autotune.whatif import Answer
from tests.builders import build_candidate, build_confirmed_result, build_gpu_result, build_result

ROOT = Path(__file__).parents[1]


def told(result: Result, label: str) -> list[str]:
    return [value for name, value in explain(result) if name == label]


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


def test_the_time_of_requests_is_shared_out() -> None:
    """Four requests of 64 tokens at a TPOT of 20 ms after prompts of 250 ms each: 1 s and 1.26 s."""
    assert told(build_result(), "time") == [
        "4 requests of 128 prompt and 64 output tokens take 2.26 s: 44% for prompts, 56% for decode steps"
    ]
    single = build_candidate(50.0, batch_size=1)
    decision = replace(build_result().decision, chosen=single)
    (line,) = told(build_result(decision=decision), "time")
    assert line.startswith("a request of 128 prompt and 64 output tokens takes 1.51 s: 17% for prompts")


def test_of_what_was_run_the_measured_times_count() -> None:
    """Prompts of 100 ms instead of 250."""
    (line,) = told(build_confirmed_result(), "time")
    assert "take 1.66 s: 24% for prompts" in line


def test_memory_is_as_planned_and_as_used() -> None:
    plan, used = told(build_confirmed_result(), "memory")
    assert plan.startswith("52.9 MB of 6.44 GB on cpu (weights 800 kB")
    assert used == "the engine held at most 3 MB on cpu while it ran configurations"
    assert told(build_result(), "memory") == [plan]


def test_what_would_have_been_without_tuning_is_predicted_where_it_was_not_run() -> None:
    (fallback,) = told(build_result(), "instead")
    assert fallback.startswith("fallback: 2 layers on cpu; 2 threads for decode, 2 for prefill; batch 1")
    assert fallback.endswith(": 80 tokens/s predicted, 2.5 times slower")


def test_what_was_run_is_compared_as_measured() -> None:
    """The default; and rules that people follow, by name. What only the search came to is left out."""
    result = build_confirmed_result()
    assert result.confirmation is not None
    default, slower = result.confirmation.trials[1], result.confirmation.default
    every = Trial(replace(default.configuration, batch_size=2), "all logical cores", "complete", None, slower)
    failed = Trial(replace(default.configuration, batch_size=3), "physical cores", "failed", "the process died")
    runs = replace(result.confirmation, trials=(*result.confirmation.trials, every, failed))
    first, second, third = told(replace(result, confirmation=runs), "instead")
    assert first.startswith("fallback: ")
    assert first.endswith(": 76 tokens/s measured, 2.5 times slower")
    assert second.startswith("all logical cores: 2 layers on cpu; 2 threads for decode, 2 for prefill; batch 2")
    assert second.endswith(": 76 tokens/s measured, 2.5 times slower")
    assert third.endswith("batch 3; prompts in chunks of 128: failed: the process died")


def test_runner_up_and_other_formats_stand_beside() -> None:
    result = build_result()
    decision = replace(
        result.decision,
        default=result.decision.chosen,
        runner_up=build_candidate(190.0, batch_size=8),
        other_formats=(FormatCandidate("TL2", build_candidate(100.0)), FormatCandidate("TQ2_0", None)),
    )
    assert told(replace(result, decision=decision), "instead") == [
        "fallback: it is the chosen configuration",
        "runner-up: 2 layers on cpu; 2 threads for decode, 2 for prefill; batch 8; prompts in chunks of 128: "
        "190 tokens/s predicted, 5.3 % slower",
        "TL2: 2 layers on cpu; 2 threads for decode, 2 for prefill; batch 4; prompts in chunks of 128: "
        "100 tokens/s predicted, 2.0 times slower",
    ]


def test_errors_on_what_was_not_seen_and_warnings_are_told() -> None:
    lines = explain(build_result(warnings=("decode was extrapolated",)))
    assert ("held-out error", "interior m 3.0% median, 8.0% p90 (4)") in lines
    assert ("note", "decode was extrapolated") in lines
    assert [value for label, value in lines if label == "searched"]


def test_explaining_needs_no_numerical_library() -> None:
    """It is there at once."""
    script = (
        "import sys, autotune.explanation\n"
        "print(sorted({'numpy', 'optuna', 'psutil', 'pandas', 'torch'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Other settings


def prospect(candidate: Candidate, *obstacles: str) -> Prospect:
    return Prospect(
        candidate.configuration, candidate.predicted, (90.0, 110.0), (0.03, 0.05), (0.2, 0.3), None, obstacles
    )


ANSWER = Answer(
    asked=prospect(build_candidate(100.0, batch_size=2)),
    chosen=prospect(build_candidate(200.0)),
    verdict="predicted: 2.0 times slower",
    reasons=("A step takes longer.", "It needs more."),
    bound_by="memory bandwidth",
    better=None,
)


def test_an_answer_gives_both_configurations_the_verdict_and_why() -> None:
    lines = explain_answer(ANSWER)
    assert [label for label, _ in lines if label] == [
        *("asked", "  predicted", "chosen", "  predicted", "verdict", "why", "why", "bound by"),
    ]
    assert ("verdict", "predicted: 2.0 times slower") in lines
    assert lines[1] == (
        "  predicted",
        "100 tokens/s (95 %: 90 to 110), TPOT 20 ms (30 ms to 50 ms), TTFT 250 ms (200 ms to 300 ms)",
    )


def test_what_goes_better_is_told_by_what_differs() -> None:
    threads = prospect(build_candidate(150.0, threads=1, batch_size=2))
    assert ("better", "with what was asked for it would be faster with decode threads 1, prefill threads 1:") in (
        explain_answer(ANSWER._replace(better=threads))
    )
    split = threads._replace(
        configuration=replace(
            ANSWER.asked.configuration, device_layers={"cpu": 1, "cuda:0": 1}, head_device="cuda:0", prefill_chunk=64
        )
    )
    hindered = ANSWER._replace(better=split, asked=ANSWER.asked._replace(obstacles=("It is too slow.",)))
    assert (
        "better",
        "with what was asked for the memory and the limits are kept with 1 layers on cpu, 1 layers on cuda:0, "
        "head on cuda:0, chunk 64:",
    ) in explain_answer(hindered)


def test_what_goes_better_but_breaks_a_limit_all_the_same_is_only_faster() -> None:
    """As with a larger batch than the workload allows, where the batch was what was asked for."""
    hindered = ANSWER.asked._replace(obstacles=("The workload allows batches of at most 1.",))
    faster = prospect(build_candidate(150.0, threads=1, batch_size=2))._replace(obstacles=hindered.obstacles)
    (told,) = [
        text for label, text in explain_answer(ANSWER._replace(asked=hindered, better=faster)) if label == "better"
    ]
    assert "it would be faster" in told
    assert "kept" not in told


def test_an_answer_as_json_has_its_figures_by_name() -> None:
    document = answer_to_json(ANSWER)
    assert document["verdict"] == ANSWER.verdict
    assert document["better"] is None
    asked = document["asked"]
    assert isinstance(asked, dict)
    assert asked["tokens_per_s_within"] == (90.0, 110.0)
    assert asked["configuration"] == ANSWER.asked.configuration
