from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from typing import Any

import pytest
from msgspec.structs import replace

from autotune.records import (
    Campaign,
    Configuration,
    Gpu,
    GpuRun,
    Gpus,
    HeldOut,
    Host,
    Kernel,
    Noise,
    Result,
    SiteKernels,
    Study,
)
from autotune.summary import show, summarize
from tests.builders import (
    build_campaign,
    build_candidate,
    build_confirmed_result,
    build_gpu_result,
    build_host,
    build_imported_result,
    build_model,
    build_result,
    build_workload,
)


def lines(result: Result, saved_in: str | None = None) -> dict[str, str]:
    """The summary by label; what stands under a repeated label is joined."""
    found: dict[str, str] = {}
    for label, value in summarize(result, saved_in):
        found[label] = f"{found[label]}\n{value}" if label in found else value
    return found


def with_noise(**changes: Any) -> Result:
    return build_result(campaign=build_campaign(noise=replace(build_campaign().noise, **changes)))


def with_decision(**changes: Any) -> Result:
    return build_result(decision=replace(build_result().decision, **changes))


def with_figures(**changes: Any) -> Result:
    chosen = build_candidate()
    return with_decision(chosen=replace(chosen, predicted=replace(chosen.predicted, **changes)))


# What the summary says


def test_the_host_is_named_with_what_may_be_used_of_it() -> None:
    """Threads with the limit that decides, memory, and why there is no GPU."""
    assert lines(build_result())["host"] == (
        "Synthetic CPU, 2 usable threads (limit: online CPUs), 6.44 GB of usable memory, no GPU (no NVIDIA driver)"
    )


def test_a_host_without_a_name_is_called_by_its_architecture() -> None:
    """And one thread is one thread."""
    host = build_host()
    host = replace(host, cpu=replace(host.cpu, name=None), limits=replace(host.limits, usable_threads=1))
    assert lines(build_result(host=host))["host"].startswith("x86_64, 1 usable thread (")


def test_gpus_are_named() -> None:
    """As NVML lists them."""
    gpu = Gpu(0, "Synthetic GPU", None, None, None, None, mig=False, unusable_reason=None)
    host: Host = build_host(gpus=Gpus(devices=(gpu, gpu), driver_version="580", absent_reason=None))
    assert lines(build_result(host=host))["host"].endswith("usable memory, Synthetic GPU, Synthetic GPU")


def test_the_tier_comes_with_its_reason() -> None:
    """A name alone says nothing."""
    assert lines(build_result())["tier"] == "Low: reads 10 GB/s from memory"


def test_the_model_comes_with_layers_and_size() -> None:
    """Size as its file would have it."""
    assert lines(build_result())["model"] == "synthetic/model, 2 layers, 976 kB"
    single = build_model(layers=build_model().layers[:1])
    assert ", 1 layer, " in lines(build_result(model=single))["model"]


def test_the_fastest_kernels_are_named_by_format_and_m() -> None:
    """With their instruction sets, and from how many tokens on another one is faster for most sites."""
    wide = {"1": "native", "16": "native", "64": "amx", "128": "amx"}
    sites = (
        SiteKernels("I2_S", 256, 256, {"1": "native"}, wide),
        SiteKernels("I2_S", 768, 256, {"1": "native"}, wide),
        SiteKernels("I2_S", 128, 256, {"1": "native"}, {**wide, "16": "amx", "128": "native"}),
        SiteKernels("F16", 1000, 256, {"1": "native", "8": "numpy", "16": "native"}, {}),
    )
    found = (
        Kernel("native", "I2_S", "avx512_vnni", None),
        Kernel("amx", "I2_S", "amx_int8", None),
        Kernel("native", "F16", "avx512", None),
        Kernel("numpy", "F16", None, None),
    )
    result = build_result(kernels=sites, campaign=build_campaign(kernels=found))
    assert lines(result)["kernels"] == (
        "I2_S native (avx512_vnni), amx (amx_int8) from m = 64; "
        "F16 native (avx512), numpy from m = 8, native from m = 16"
    )
    assert "kernels" not in lines(build_result(kernels=()))


def test_the_workload_comes_with_lengths_and_limits() -> None:
    """Limits with as many digits as they have, and none that doesn't exist."""
    assert lines(build_result())["workload"] == (
        "server: prompt 128, output 64, context 512, batch up to 8, TPOT within 100 ms"
    )
    limited = replace(build_result(), workload=build_workload(max_tpot_s=0.0005, max_ttft_s=2.5))
    assert lines(limited)["workload"].endswith(", TPOT within 0.5 ms, TTFT within 2.5 s")
    free = replace(build_result(), workload=build_workload(max_tpot_s=None))
    assert lines(free)["workload"].endswith("batch up to 8")


def test_it_says_what_was_timed() -> None:
    """How many points of how many, which products, with which threads, through how much memory."""
    assert lines(build_result())["timed"] == (
        "3 of 4 points in 1.5 s (3 numpy I2_S products, threads 1; weights rotate through 67.1 MB)"
    )


def test_it_says_how_noisy_it_was() -> None:
    """Only what the system reveals."""
    assert lines(build_result())["noise"] == (
        "quiet (median interval ±1.0%, 3 of 4 points within 2 %, 0 samples repeated, control drifted 1.0%)"
    )
    noisy = with_noise(control_drift=0.25, disturbed_samples=1, steal_fraction=0.125, throttled_s=3.25)
    assert lines(noisy)["noise"] == (
        "noisy (median interval ±1.0%, 3 of 4 points within 2 %, 1 sample repeated, control drifted 25.0%, "
        "steal 12.5%, throttled 3.2 s)"
    )


def test_an_interval_that_is_not_known_is_not_made_up() -> None:
    """Too few samples of every point, as a small budget gives."""
    assert "median interval unknown" in lines(with_noise(median_relative_interval=None))["noise"]


def test_it_gives_the_error_on_what_was_held_out() -> None:
    """Each way of leaving something out, and where there was nothing to leave out."""
    result = build_result()
    nothing = HeldOut(left_out="thread count", predictions=0, median=None, p90=None, worst=None)
    report = replace(result.cost_model, held_out=(*result.cost_model.held_out, nothing))
    assert lines(replace(result, cost_model=report))["held-out error"] == (
        "interior m 3.0% median, 8.0% p90 (4); thread count: nothing to leave out"
    )


def test_the_choice_and_the_fallback_stand_side_by_side() -> None:
    """With predicted figures and memory, and how much faster the choice is."""
    summary = summarize(build_result(), None)
    at = [label for label, _ in summary].index("chosen")
    assert summary[at : at + 5] == [
        ("chosen", "2 layers on cpu; 2 threads for decode, 2 for prefill; batch 4; prompts in chunks of 128"),
        ("  predicted", "200 tokens/s, TPOT 20 ms, TTFT 250 ms"),
        (
            "  memory",
            "52.9 MB of 6.44 GB on cpu (weights 800 kB, KV cache 2 MB, activations 100 kB, runtime 50 MB)",
        ),
        ("fallback", "2 layers on cpu; 2 threads for decode, 2 for prefill; batch 1; prompts in chunks of 128"),
        ("  predicted", "80 tokens/s, TPOT 12.5 ms, TTFT 250 ms (chosen: 2.50x as fast)"),
    ]


# What was run


def with_runs(**changes: Any) -> Result:
    confirmed = build_confirmed_result()
    assert confirmed.confirmation is not None
    return replace(confirmed, confirmation=replace(confirmed.confirmation, **changes))


def test_what_was_measured_stands_below_what_was_predicted() -> None:
    """For the choice and the fallback, with the interval; nothing where nothing was run."""
    summary = summarize(build_confirmed_result(), None)
    at = [label for label, _ in summary].index("  predicted") + 1
    assert summary[at] == ("  measured", "190 tokens/s ±1.2%, TPOT 20 ms, TTFT 100 ms")
    assert [value for label, value in summary if label == "  measured"][1].startswith("76 tokens/s ±1.2%, ")
    assert "  measured" not in lines(build_result())


def test_too_few_samples_have_no_interval() -> None:
    """It is unknown, and not zero."""
    confirmed = build_confirmed_result()
    assert confirmed.confirmation is not None
    assert confirmed.confirmation.chosen is not None
    chosen = replace(confirmed.confirmation.chosen, relative_interval=None)
    assert lines(with_runs(chosen=chosen, default=None))["  measured"] == "190 tokens/s, TPOT 20 ms, TTFT 100 ms"


def test_it_says_what_was_run_and_what_that_told() -> None:
    """How many configurations, how they ended and why no more; then what it says of engine and predictions."""
    summary = lines(build_confirmed_result())
    assert summary["run"].splitlines() == [
        "4 configurations (2 complete, 1 pruned, 1 failed) on the synthetic engine in 9.5 s; nothing else could win",
        "1.2% of a decode step is spent outside the kernels",
    ]
    assert summary["corrected"] == (
        "decode on cpu: 1.050 times the predicted time in 2 runs; median error 5.0% as predicted, "
        "1.0% when each is predicted from the others"
    )
    assert not {"run", "corrected"} & lines(build_result()).keys()


@pytest.mark.parametrize(
    ("stopped", "words"),
    [("decided", "nothing else could win"), ("budget", "the time was up"), ("failed", "none could be run")],
)
def test_it_says_why_no_more_was_run(stopped: str, words: str) -> None:
    """A budget that ended the search is told from one that was enough."""
    assert lines(with_runs(stopped=stopped))["run"].splitlines()[0].endswith(f"; {words}")


def test_it_says_where_layers_shared_weights_and_leaves_out_what_is_unknown() -> None:
    """One run has no other to be predicted from."""
    confirmed = build_confirmed_result()
    assert confirmed.confirmation is not None
    (report,) = confirmed.confirmation.corrections
    alone = replace(report, runs=1, median_error_after=None)
    summary = lines(with_runs(overhead_share=None, reused_layers=1, corrections=(alone,)))
    assert summary["run"].splitlines()[1:] == ["1 layer had another one's weights: not all fit the memory"]
    assert summary["corrected"].endswith("in 1 run; median error 5.0% as predicted")


def test_runs_for_another_workload_are_no_figures_of_this_one() -> None:
    """They still correct its predictions, and the line says whose they were."""
    confirmed = build_confirmed_result()
    summary = lines(replace(confirmed, workload=build_workload(name="chat", max_batch=1)))
    assert "  measured" not in summary
    assert "in 9.5 s, for another workload (server); nothing else" in summary["run"]
    assert "corrected" in summary


# What was decided


def test_a_fallback_that_does_not_fit_is_left_out() -> None:
    """There is nothing to compare with."""
    summary = lines(with_decision(default=None, speedup_over_default=None))
    assert "fallback" not in summary
    assert "as fast" not in "".join(summary.values())


def test_the_runner_up_has_its_figures() -> None:
    """In one line; none where nothing else decodes differently."""
    assert "runner-up" not in lines(build_result())
    runner_up = build_candidate(tokens_per_s=190.0, threads=1, batch_size=2)
    assert lines(with_decision(runner_up=runner_up))["runner-up"] == (
        "2 layers on cpu; 1 thread for decode, 1 for prefill; batch 2; prompts in chunks of 128: "
        "190 tokens/s, TPOT 10.5 ms, TTFT 250 ms"
    )


def test_a_split_names_every_device_and_where_the_head_is() -> None:
    """In the order data flows; one layer is one layer."""
    summary = lines(build_gpu_result())
    assert summary["chosen"].startswith("1 layer on cpu, 1 layer on cuda:0, head on cuda:0; 2 threads for decode, ")
    assert " on cpu (weights" in summary["  memory"]
    assert " on cuda:0 (weights" in summary["  memory"]


def test_threads_are_no_matter_where_the_cpu_does_nothing() -> None:
    """The saved configuration holds them all the same."""
    chosen = build_candidate()
    on_gpu: Configuration = replace(chosen.configuration, device_layers={"cuda:0": 30}, head_device="cuda:0")
    summary = lines(with_decision(chosen=replace(chosen, configuration=on_gpu)))
    assert summary["chosen"] == "30 layers on cuda:0; batch 4; prompts in chunks of 128"


def test_a_gpu_is_summed_up_in_a_line() -> None:
    """What was timed, its memory, noise and clocks, and what launching without graphs would cost."""
    summary = lines(build_gpu_result())
    assert summary["host"].endswith("Synthetic GPU (7.52 GB free)")
    assert summary["cuda:0"] == (
        "2 of 2 points in 0.5 s; 7.52 GB free, of which a context takes 400 MB; median interval ±1.0%; "
        "clock 2100 to 2500 MHz; predictions are of CUDA graphs; products of one token launched one by one take 2.5x"
    )
    assert summary["  on cuda:0"] == "interior m 3.0% median, 8.0% p90 (4)"
    assert summary["kernels"].endswith("; on cuda:0 I2_S triton")
    assert summary["timed"].startswith("3 of 4 points in 1.0 s (3 numpy I2_S products, ")


def test_a_gpu_that_was_not_timed_says_why() -> None:
    """In one line."""
    run = GpuRun(devices=("cuda:0", "cuda:1"), failure="torch isn't installed")
    summary = lines(build_result(campaign=build_campaign(gpus=(run,))))
    assert summary["cuda:0"] == "not used: torch isn't installed"


@pytest.mark.parametrize(
    ("tokens_per_s", "text"),
    [(0.01234, "0.0123"), (9.876, "9.88"), (99.94, "99.9"), (99.96, "100"), (999.6, "1,000"), (1659.2, "1,659")],
)
def test_speeds_are_printed_without_exponents(tokens_per_s: float, text: str) -> None:
    """Three digits are enough below a hundred; 1.66e+03 tokens/s is no way to say it."""
    assert lines(with_figures(tokens_per_s=tokens_per_s))["  predicted"].startswith(f"{text} tokens/s, ")


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(2e-5, "0.02 ms"), (0.0151, "15.1 ms"), (0.9996, "1,000 ms"), (1.5, "1.5 s"), (2000.4, "2,000 s")],
)
def test_durations_are_printed_in_the_unit_that_suits(time_s: float, text: str) -> None:
    """Milliseconds below a second."""
    assert f"TPOT {text}, " in lines(with_figures(tpot_s=time_s))["  predicted"]


def test_it_says_why() -> None:
    """Every reason in a line of its own, and what bounds the choice."""
    summary = lines(with_decision(reasons=("first", "second"), bound_by="arithmetic"))
    assert summary["why"] == "first\nsecond"
    assert summary["bound by"] == "arithmetic"


def test_it_says_how_much_was_searched_and_how_far_optuna_came() -> None:
    """Nothing of a study where there was none, or where none of its trials was feasible."""
    exact = "60 of 64 configurations feasible, all ranked in 1.0 ms"
    assert lines(build_result())["searched"] == f"{exact}; the best that Optuna found in 40 trials is 0.0% slower"
    search = build_result().decision.search
    hopeless = Study(sampler="TPESampler", seed=0, trials=4, feasible_trials=0, best=None, gap=None)
    for study in (None, hopeless):
        assert lines(with_decision(search=replace(search, study=study)))["searched"] == exact


def test_notes_of_the_model_come_before_those_of_the_run() -> None:
    """All under one label."""
    result = build_result(model=build_model(notes=("taken as I2_S",)), warnings=("1 of 4 points was not timed",))
    assert lines(result)["note"] == "taken as I2_S\n1 of 4 points was not timed"
    assert "note" not in lines(build_result())


def test_it_says_where_it_was_saved_if_it_was() -> None:
    """Last of all."""
    assert summarize(build_result(), "/somewhere/model.json")[-1] == ("saved", "/somewhere/model.json")
    assert "saved" not in lines(build_result(), None)


def test_a_campaign_without_measurements_still_has_a_line() -> None:
    """A summary never breaks over what is missing."""
    noise: Noise = replace(build_campaign().noise, median_relative_interval=None, converged=0, points=0)
    campaign: Campaign = build_campaign(points=0, noise=noise)
    assert lines(build_result(campaign=campaign))["timed"].startswith("0 of 1 points in 1.5 s (")


# How it is printed


def shown(value: list[tuple[str, str]], columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that reach a terminal of that width behind standard error."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        show(value)
        monkeypatch.undo()
    printed = b""
    # OSError is how Linux says that the other side is closed.
    with os.fdopen(reader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while piece := terminal.read(65536):
            printed += piece
    return printed.decode().splitlines()


@pytest.mark.parametrize("columns", [60, 80, 110])
def test_lines_are_wrapped_to_the_terminal_of_standard_error(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values keep to their column, and nothing is lost."""
    summary = summarize(build_result(), None)
    printed = shown(summary, columns, monkeypatch)
    margin = len("held-out error") + 2
    assert max(map(len, printed)) <= columns
    assert max(map(len, printed)) > columns - 25
    assert all(line[margin - 2 : margin].strip() == "" for line in printed)
    assert " ".join(" ".join(line[margin:] for line in printed).split()) == " ".join(
        value for _, value in summary if value
    )


def test_a_narrow_terminal_leaves_values_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty columns, though the terminal then wraps once more."""
    printed = shown([("label", "word " * 40)], 10, monkeypatch)
    assert {len(line) for line in printed[:-1]} <= {len("label") + 2 + 39, len("label") + 2 + 40}


def test_a_terminal_that_does_not_know_its_width_gets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As serial consoles and some containers do."""
    printed = shown([("label", "word " * 100)], 0, monkeypatch)
    assert 110 < max(map(len, printed)) <= 120


def test_without_a_terminal_lines_have_a_fixed_width(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on standard output, which is for documents."""
    show([("label", "word " * 100)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert 110 < max(map(len, captured.err.splitlines())) <= 120


def test_a_path_is_never_broken(capsys: pytest.CaptureFixture[str]) -> None:
    """It can be copied whole, hyphens and all, however long it is."""
    path = "/a-folder/" + "with-many-hyphens/" * 20 + "model.json"
    show([("saved", path)])
    assert path in capsys.readouterr().err


def test_a_repeated_label_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty line between blocks stays empty."""
    show([("why", "first"), ("why", "second"), ("", ""), ("note", "third")])
    assert capsys.readouterr().err == "why   first\n      second\n\nnote  third\n"


def test_nothing_to_show_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """As of an empty cache."""
    show([])
    assert capsys.readouterr().err == ""


def test_an_imported_and_checked_result_says_so() -> None:
    """Where it was measured, and whether its figures were found to hold here."""
    lines = dict(summarize(build_imported_result(), None))
    assert lines["imported"].startswith("measured on synthetic-twin, of the same hardware class haswell-2t-8g")
    assert "which holds within 5.0%" in lines["  checked"]
