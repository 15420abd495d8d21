"""What-ifs: of a real host with two threads as it was recorded, and of a synthetic one with a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.conclusion import conclude
from autotune.costmodel.heldout import fit
from autotune.errors import UsageError
from autotune.evidence import Evidence, workload_of
from autotune.model.sizes import readable_bytes
from autotune.options import Options
from autotune.outlook import Outlook
from autotune.records import Configuration, Result
from autotune.search.variants import read_variants
from autotune.search.wording import milliseconds
from autotune.store.recording import read
from autotune.whatif import Answer, Wish, what_if
from tests.builders import build_confirmation

ROOT = Path(__file__).parents[1]
XEON = ROOT / "tests" / "hosts" / "xeon-2-threads-native.json"
LAPTOP = ROOT / "tests" / "hosts" / "synthetic" / "laptop-8gb-gpu.json"


def decided_for(path: Path) -> Result:
    """The result for a server on a recorded host, without a study."""
    recording = read(str(path))
    campaign = recording.campaigns[0]
    models = read_variants("bitnet-b1.58-2B-4T", None, campaign.kernels, recording.host.cpu.architecture)
    workload = workload_of(Options(), models[0], recording.host)
    evidence = Evidence(models, recording.host, campaign, *fit(campaign))
    return conclude(evidence, workload, started=0.0, trials=None)


@pytest.fixture(scope="module")
def on_cpu() -> Result:
    """Measured on a real host with two threads."""
    result = decided_for(XEON)
    assert (chosen_of(result).batch_size, chosen_of(result).decode_threads) == (8, 2)
    return result


@pytest.fixture(scope="module")
def on_gpu() -> Result:
    """Of a synthetic laptop, all on its GPU."""
    return decided_for(LAPTOP)


def chosen_of(result: Result) -> Configuration:
    return result.decision.chosen.configuration


def gain_of(answer: Answer) -> float:
    return answer.asked.predicted.tokens_per_s / answer.chosen.predicted.tokens_per_s


def test_settings_not_asked_about_stay_as_chosen(on_cpu: Result) -> None:
    answer = what_if(on_cpu, Wish(batch_size=4))
    assert answer.asked.configuration == replace(chosen_of(on_cpu), batch_size=4)
    assert answer.chosen.configuration == chosen_of(on_cpu)
    answer = what_if(on_cpu, Wish(decode_threads=1, prefill_chunk=64))
    assert answer.asked.configuration == replace(chosen_of(on_cpu), decode_threads=1, prefill_chunk=64)


def test_what_it_costs_is_told_in_what_the_workload_is_after(on_cpu: Result) -> None:
    """And why: the step takes less, but gives still fewer tokens."""
    answer = what_if(on_cpu, Wish(batch_size=4))
    slower = 1 / gain_of(answer) - 1
    assert answer.verdict == (
        f"predicted: {slower * 100:.1f} % slower, {answer.asked.predicted.tokens_per_s:.4g} tokens/s instead of "
        f"{answer.chosen.predicted.tokens_per_s:.4g}"
    )
    step, memory = answer.reasons
    steps_s = [one.predicted.tpot_s for one in (answer.asked, answer.chosen)]
    each_s = [steps_s[0] / 4, steps_s[1] / 8]
    assert step == (
        f"A decode step takes {milliseconds(steps_s[0])} with batch 4 and {milliseconds(steps_s[1])} with 8: "
        f"{milliseconds(each_s[0])} per token of all sequences instead of {milliseconds(each_s[1])}, "
        f"{(each_s[0] / each_s[1] - 1) * 100:.1f} % slower."
    )
    needed = [readable_bytes(one.predicted.memory[0].total_bytes) for one in (answer.asked, answer.chosen)]
    assert memory == f"It needs {needed[0]} on cpu instead of {needed[1]}."
    assert answer.bound_by.startswith("memory bandwidth")


def test_of_a_chat_the_time_per_token_counts(on_cpu: Result) -> None:
    """Its verdict is on TPOT, whatever a prompt takes."""
    chat = replace(
        on_cpu,
        workload=replace(on_cpu.workload, name="chat", max_batch=8, max_tpot_s=None),
        decision=replace(on_cpu.decision, search=replace(on_cpu.decision.search, effective_max_tpot_s=None)),
    )
    answer = what_if(chat, Wish(prefill_chunk=32))
    step = milliseconds(answer.chosen.predicted.tpot_s)
    assert answer.verdict.startswith(f"predicted: as fast, {step} per token instead of {step}, within the noise of ")
    assert answer.reasons[0].startswith("A prompt takes ")


def test_batches_need_be_no_powers_of_two(on_cpu: Result) -> None:
    rates = [what_if(on_cpu, Wish(batch_size=size)).asked.predicted.tokens_per_s for size in (2, 3, 4)]
    assert rates == sorted(rates)


def test_limits_and_memory_that_are_broken_are_told(on_cpu: Result) -> None:
    answer = what_if(on_cpu, Wish(batch_size=16))
    step = milliseconds(answer.asked.predicted.tpot_s)
    assert f"A token takes {step}, over the limit of 100 ms." in answer.reasons
    assert answer.better is None  # no other setting makes so large a batch fast enough
    answer = what_if(on_cpu, Wish(batch_size=500))
    assert "The workload allows batches of at most 32." in answer.reasons
    assert any("more than there is" in reason for reason in answer.reasons)
    assert any("are extrapolated" in reason for reason in answer.reasons)
    assert "95 % ranges" in answer.reasons[-1]  # which don't widen by that
    assert not any("95 % ranges" in reason for reason in what_if(on_cpu, Wish(batch_size=16)).reasons)


def test_another_setting_that_goes_better_with_it_is_told(on_cpu: Result) -> None:
    """The best of all with what was asked for, by the same cost model; nothing of it is changed."""
    answer = what_if(on_cpu, Wish(prefill_chunk=32, decode_threads=1, batch_size=2))
    assert answer.better is None or answer.better.configuration.batch_size == 2
    answer = what_if(on_cpu, Wish(decode_threads=1))
    assert answer.asked.obstacles
    assert answer.better is not None
    assert answer.better.configuration.decode_threads == 1
    assert answer.better.configuration.batch_size < 8
    assert not answer.better.obstacles
    outlook = Outlook(on_cpu)
    rivals = [
        prospect
        for size in (1, 2, 4)
        for chunk in (32, 64, 128, 256, 512)
        for prospect in [outlook.at(replace(chosen_of(on_cpu), decode_threads=1, batch_size=size, prefill_chunk=chunk))]
        if not prospect.obstacles
    ]
    best = max(prospect.predicted.tokens_per_s for prospect in rivals)
    assert answer.better.predicted.tokens_per_s == pytest.approx(best)


def test_the_chosen_settings_are_the_chosen_configuration(on_cpu: Result) -> None:
    answer = what_if(on_cpu, Wish(batch_size=8, decode_threads=2))
    assert answer.verdict == "it is the chosen configuration"
    assert answer.reasons == ()
    assert answer.asked == answer.chosen


def test_the_intervals_hold_the_predictions(on_cpu: Result) -> None:
    for prospect in what_if(on_cpu, Wish(decode_threads=1))[:2]:
        for value, (low, high) in (
            (prospect.predicted.tokens_per_s, prospect.tokens_per_s_within),
            (prospect.predicted.tpot_s, prospect.tpot_s_within),
            (prospect.predicted.ttft_s, prospect.ttft_s_within),
        ):
            assert low <= value <= high


def test_what_was_run_is_compared_as_measured(on_cpu: Result) -> None:
    """Both configurations' parts were run: the measured comparison comes first."""
    other = replace(chosen_of(on_cpu), batch_size=4)
    runs = build_confirmation(on_cpu.workload, chosen_of(on_cpu), other)
    (decode, prefill) = runs.runs
    half = replace(decode, part=replace(decode.part, size=4), samples_s=(0.015,) * 6, device_s={"cpu": (0.0149,) * 6})
    answer = what_if(replace(on_cpu, confirmation=replace(runs, runs=(decode, prefill, half))), Wish(batch_size=4))
    assert answer.asked.measured is not None
    assert answer.verdict.startswith("measured: ")
    assert "; predicted: " in answer.verdict


# With a GPU


def test_layers_go_where_they_are_fastest(on_gpu: Result) -> None:
    """The head stays on the GPU; the CPU, whose threads were not chosen, gets the fastest ones."""
    assert chosen_of(on_gpu).device_layers == {"cuda:0": 30}
    answer = what_if(on_gpu, Wish(gpu_layers=20))
    asked = answer.asked.configuration
    assert asked.device_layers == {"cpu": 10, "cuda:0": 20}
    assert asked.head_device == "cuda:0"
    assert asked.decode_threads > 1
    assert gain_of(answer) < 0.5
    assert any("on cuda:0 instead of" in reason for reason in answer.reasons)
    fixed = what_if(on_gpu, Wish(gpu_layers=20, decode_threads=2, prefill_threads=3)).asked.configuration
    assert (fixed.decode_threads, fixed.prefill_threads) == (2, 3)


def test_all_layers_can_come_back_to_the_cpu(on_gpu: Result) -> None:
    answer = what_if(on_gpu, Wish(gpu_layers=0))
    assert answer.asked.configuration.device_layers == {"cpu": 30}
    assert any("nothing on cuda:0 instead of" in reason for reason in answer.reasons)


def test_threads_of_a_cpu_that_does_nothing_change_nothing(on_gpu: Result) -> None:
    answer = what_if(on_gpu, Wish(decode_threads=3))
    assert "The CPU has neither layers nor the head, so its threads change nothing." in answer.reasons
    assert gain_of(answer) == 1


def test_as_many_layers_as_chosen_are_the_chosen_configuration(on_gpu: Result) -> None:
    assert what_if(on_gpu, Wish(gpu_layers=30)).verdict == "it is the chosen configuration"


def test_layers_that_no_memory_holds_are_still_answered(on_gpu: Result) -> None:
    """With what lacks least: and a smaller batch with as many layers is offered, where the batch was left open."""
    answer = what_if(on_gpu, Wish(gpu_layers=29, batch_size=256))
    assert answer.asked.configuration.device_layers == {"cpu": 1, "cuda:0": 29}
    assert any("more than there is" in reason for reason in answer.reasons)
    too_full = replace(chosen_of(on_gpu), device_layers={"cpu": 30}, head_device="cpu", batch_size=128)
    decided = replace(on_gpu.decision, chosen=replace(on_gpu.decision.chosen, configuration=too_full))
    answer = what_if(replace(on_gpu, decision=decided), Wish(gpu_layers=30))
    assert answer.asked.obstacles
    assert answer.better is not None
    assert answer.better.configuration.device_layers == {"cuda:0": 30}
    assert answer.better.configuration.batch_size < 128


# What can't be asked


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(decode_threads=3), "decode threads must be 1 to 2, which is what .* may use .*, got 3"),
        (Wish(prefill_threads=0), "prefill threads must be 1 to 2, .* got 0"),
        (Wish(batch_size=0), "--batch must be 1 to 4096, got 0"),
        (Wish(batch_size=5000), "--batch must be 1 to 4096, got 5000"),
        (Wish(prefill_chunk=0), "--chunk must be 1 to 512, the workload's prompt tokens, got 0"),
        (Wish(prefill_chunk=513), "--chunk must be 1 to 512, .* got 513"),
        (Wish(gpu_layers=-1), "--gpu-layers must be 0 to 30, the layers of .*, got -1"),
        (Wish(gpu_layers=31), "--gpu-layers must be 0 to 30, .* got 31"),
        (Wish(gpu_layers=1), "--gpu-layers 1 can't be predicted: no GPU was timed on "),
    ],
)
def test_what_no_run_could_use_is_the_users_mistake(on_cpu: Result, wish: Wish, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        what_if(on_cpu, wish)


def test_no_layers_on_gpus_can_be_asked_for_without_one(on_cpu: Result) -> None:
    assert what_if(on_cpu, Wish(gpu_layers=0)).verdict == "it is the chosen configuration"
