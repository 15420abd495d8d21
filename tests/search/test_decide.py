import dataclasses
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import ConstraintError, MemoryLimitError
from autotune.model.memory import Room
from autotune.records import Configuration, Decision
from autotune.search.decide import Alternative, decide
from autotune.search.workload import make_workload

GIB = 2**30


@pytest.fixture(scope="session")
def decide_for(make_model, make_costs, room_of):
    """Decides for a synthetic model; the default uses up to four threads, and options pass to the workload."""

    def call(name="server", *, model=None, costs=None, available_bytes=None, noise=0.02, trials=None, **options):
        model = model or make_model()
        available_bytes = available_bytes or {"cpu": GIB}
        costs = costs or make_costs(len(model.layers), devices=tuple(available_bytes))
        threads = min(4, int(costs.threads[-1]))
        _, decision, _ = decide(
            [Alternative("I2_S", model, costs, lambda configuration: f"synthetic, batch {configuration.batch_size}")],
            make_workload(name, model, **options),
            room=room_of(available_bytes),
            default=Configuration(
                device_layers={"cpu": len(model.layers)},
                head_device="cpu",
                decode_threads=threads,
                prefill_threads=threads,
                batch_size=1,
                prefill_chunk=int(costs.chunks[-1]),
            ),
            noise=noise,
            trials=trials,
        )
        return decision

    return call


def test_a_server_batches_and_says_what_that_gains(decide_for):
    decision = decide_for()
    assert decision.chosen.configuration.batch_size == 8
    assert decision.default.configuration.batch_size == 1
    gain = decision.chosen.predicted.tokens_per_s / decision.default.predicted.tokens_per_s
    assert decision.speedup_over_default == pytest.approx(gain)
    assert gain > 1.5
    assert decision.bound_by == "synthetic, batch 8"
    assert decision.search.objective == "tokens_per_s"
    assert decision.search.effective_max_tpot_s == 0.1
    assert decision.search.study is None
    assert decision.reasons == (
        f"The default would be {gain:.1f} times slower, beyond the noise of 2.0 %.",
        "Decode uses 2 threads: 1 would be 2.0 times slower.",
        "Prefill uses 2 threads: 1 would be 2.0 times slower.",
        "Batch 8 is the largest that the workload allows.",
        "Prompts go through 512 tokens at a time: 256 would be 1.5 % slower.",
    )


def test_the_best_beats_the_default_by_more_than_the_noise_or_the_default_stays(decide_for, make_costs):
    """Eight threads are 3 % faster than four in decode; the workload is decode only."""
    costs = make_costs(threads=(1, 4, 8), saturates_at=4)
    costs.decode_layer_s[..., 2, :] /= 1.03
    costs.decode_ends_s[..., 2, :] /= 1.03

    quiet = decide_for("chat", costs=costs, noise=0.02)
    assert quiet.chosen.configuration.decode_threads == 8
    assert quiet.reasons[0] == "The default would be 3.0 % slower, beyond the noise of 2.0 %."

    noisy = decide_for("chat", costs=costs, noise=0.05)
    assert noisy.chosen == noisy.default
    assert noisy.runner_up == quiet.chosen
    assert noisy.speedup_over_default == 1
    assert noisy.reasons[:2] == (
        "The default would be 3.0 % slower, within the noise of 5.0 %, so it stays.",
        "Decode uses 4 threads: 1 would be 4.0 times slower and 8 would be 2.9 % faster.",
    )


def test_chat_leaves_the_default_for_a_faster_first_token_alone(decide_for, make_costs):
    """Decode saturates at four threads, prefill doubles its speed with eight: TPOT ties, TTFT does not."""
    costs = make_costs(threads=(1, 4, 8), saturates_at=4)
    costs.prefill_layer_s[..., 2, :] /= 2
    costs.prefill_ends_s[..., 2, :] /= 2
    decision = decide_for("chat", costs=costs)
    chosen = decision.chosen.configuration
    assert (chosen.decode_threads, chosen.prefill_threads) == (4, 8)
    assert decision.reasons[0] == "The default would be 2.0 times slower to the first token, beyond the noise of 2.0 %."
    assert decision.speedup_over_default == 1


def test_a_server_leaves_the_default_for_a_faster_first_token_alone(decide_for, make_costs):
    """Decode takes nearly all of the time, so prefill at twice the speed is noise in tokens/s, but not in TTFT."""
    costs = make_costs(threads=(1, 4, 8), saturates_at=4)
    costs.decode_layer_s[:] *= 1000
    costs.prefill_layer_s[..., 2, :] /= 2
    costs.prefill_ends_s[..., 2, :] /= 2
    decision = decide_for("server", costs=costs, max_batch=1)
    chosen = decision.chosen.configuration
    assert (chosen.decode_threads, chosen.prefill_threads) == (4, 8)
    assert decision.reasons[0] == "The default would be 2.0 times slower to the first token, beyond the noise of 2.0 %."
    assert decision.speedup_over_default < 1.02


def test_chat_keeps_the_default_whose_first_token_comes_sooner(decide_for, make_costs):
    """The GPU decodes 1 % faster, which is noise, but its first token comes far later."""
    costs = make_costs(devices=("cpu", "cuda:0"), gpu_speedup=2.02, crossing_s=0.0)
    costs.prefill_layer_s[1] *= 5
    costs.prefill_ends_s[1] *= 5
    decision = decide_for("chat", costs=costs, available_bytes={"cpu": GIB, "cuda:0": GIB})
    assert decision.chosen == decision.default
    assert decision.runner_up.configuration.device_layers == {"cuda:0": 8}


def test_where_the_default_is_the_best_it_is_said_so(decide_for):
    decision = decide_for("chat")
    assert decision.chosen == decision.default
    assert decision.reasons[0] == "The default is the best configuration of all."
    assert decision.runner_up.configuration.decode_threads == 1


def test_a_space_of_one_point_has_no_runner_up(decide_for, make_costs):
    decision = decide_for("chat", costs=make_costs(threads=(1,), chunks=(32,)))
    assert decision.runner_up is None
    assert decision.search.points == decision.search.feasible == 1
    assert decision.reasons == (
        "The default is the best configuration of all.",
        "Batch 1 is the largest that the workload allows.",
    )


def test_a_default_that_does_not_fit_has_no_figures(decide_for, make_model, needs):
    """Half of the layers fit each device, and those only in the shortest chunks."""
    available = needs(make_model(), {"cpu": 4, "cuda:0": 4}, batch=1, chunk=32, context=2048)
    decision = decide_for("chat", available_bytes=available)
    assert set(decision.chosen.configuration.device_layers) == {"cpu", "cuda:0"}
    assert (decision.default, decision.speedup_over_default) == (None, None)
    assert decision.reasons[0] == "The default would break the memory there is."
    assert re.fullmatch(
        r"4 of 8 layers and the head are on cuda:0: all on the CPU would lack 4\.\d+ MB of the CPU's memory "
        r"and all on cuda:0 would lack 4\.\d+ MB of cuda:0's memory\.",
        decision.reasons[1],
    )


def test_a_default_that_breaks_a_limit_is_left_however_small_the_gain(decide_for, make_costs):
    costs = make_costs(threads=(1, 4, 8), saturates_at=4)
    costs.decode_layer_s[..., 2, :] /= 1.03
    costs.decode_ends_s[..., 2, :] /= 1.03
    decision = decide_for("chat", costs=costs, noise=0.5, max_tpot_ms=17.8)
    assert decision.chosen.configuration.decode_threads == 8
    assert decision.default.predicted.tpot_s == pytest.approx(18e-3)
    assert decision.reasons[0] == "The default would break the limit on the time per output token."


def test_what_stops_a_larger_batch_is_named(decide_for, make_model, make_costs, needs):
    def batch_reason(**changes):
        (reason,) = (reason for reason in decide_for(**changes).reasons if reason.startswith("Batch"))
        return reason

    assert batch_reason(max_tpot_ms=42) == "Batch 4 and not 8: a token would take 48.6 ms, over the limit of 42 ms."
    enough = needs(make_model(), {"cpu": 8}, batch=8, chunk=32, context=2048)["cpu"]
    reason = batch_reason(available_bytes={"cpu": enough - 5000})
    assert reason == "Batch 4 and not 8: that needs 5 kB more memory than there is."
    no_gain = make_costs(row_share=1.0)
    assert batch_reason(costs=no_gain) == "Batch 1 and not 2: that would be as fast."


def test_memory_and_limits_that_exclude_each_other_are_named(decide_for, make_model, make_costs, needs):
    """Two sequences fit only in the shortest chunks, with which the first token comes too late."""
    costs = make_costs(batches=(1, 2), chunks=(32, 512), prompt=512)
    available = needs(make_model(), {"cpu": 8}, batch=1, chunk=512, context=2048)
    decision = decide_for(costs=costs, available_bytes=available, max_ttft_ms=2400)
    assert decision.chosen.configuration.batch_size == 1
    assert "Batch 1 and not 2: that can't keep the memory and the limits together." in decision.reasons


def test_a_faster_chunk_that_does_not_fit_is_named(decide_for, make_model, needs):
    available = needs(make_model(), {"cpu": 8}, batch=8, chunk=256, context=2048)
    decision = decide_for("offline", available_bytes=available)
    (reason,) = (reason for reason in decision.reasons if reason.startswith("Prompts"))
    assert reason == "Prompts go through 256 tokens at a time: 512 would be 1.5 % faster but would not fit the memory."


def test_a_relaxed_limit_is_explained(decide_for, make_model, make_costs):
    decision = decide_for(model=make_model(40), costs=make_costs(40))
    assert decision.search.effective_max_tpot_s == pytest.approx(0.205)
    assert decision.reasons[1] == (
        "No batch size keeps 100 ms per output token (the best is 164 ms), so 1.25 times the best is allowed."
    )
    assert decision.chosen.predicted.tpot_s <= 0.205


def test_the_study_is_part_of_the_report_and_the_decision_repeats(decide_for):
    first, again = decide_for(trials=16), decide_for(trials=16)
    assert first.search.study.trials == 16
    assert first.search.study.gap >= 0

    def timeless(decision):
        search = msgspec.structs.replace(decision.search, ranking_time_s=0.0)
        return msgspec.structs.replace(decision, search=search)

    assert timeless(first) == timeless(again)


def test_a_decision_survives_json(decide_for):
    decision = decide_for(trials=4)
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["chat", "server", "offline"]),
    gpus=st.sampled_from([0, 1, 2]),
    max_tpot_ms=st.none() | st.integers(500, 9000),
    max_ttft_ms=st.none() | st.integers(500, 9000),
    megabytes=st.lists(st.floats(1, 12), min_size=3, max_size=3),
    noise=st.floats(0, 0.5),
)
@settings(deadline=None, max_examples=60)
def test_the_chosen_keeps_every_limit_and_is_never_worse_than_the_default(
    decide_for, make_model, make_random_costs, seed, name, gpus, max_tpot_ms, max_ttft_ms, megabytes, noise
):
    """Whatever the costs, memory, limits and noise."""
    devices = ("cpu", *(f"cuda:{index}" for index in range(gpus)))
    model = make_model(5, wide_first=True)
    available = {device: int(size * 2**20) for device, size in zip(devices, megabytes, strict=False)}
    try:
        decision = decide_for(
            name,
            model=model,
            costs=make_random_costs(seed, 5, devices=devices, threads=(1, 2), batches=(1, 2, 4), chunks=(32, 64)),
            available_bytes=available,
            noise=noise,
            prompt=64,
            output=16,
            context=512,
            max_tpot_ms=max_tpot_ms,
            max_ttft_ms=max_ttft_ms,
        )
    except (MemoryLimitError, ConstraintError):
        return
    for candidate in filter(None, (decision.chosen, decision.runner_up)):
        figures = candidate.predicted
        assert all(use.total_bytes <= use.available_bytes == available[use.device] for use in figures.memory)
        if decision.search.effective_max_tpot_s is not None:
            assert figures.tpot_s <= decision.search.effective_max_tpot_s
        if max_ttft_ms is not None:
            assert figures.ttft_s <= max_ttft_ms / 1e3
    if decision.default and "break" not in decision.reasons[0]:
        assert decision.speedup_over_default >= 1
    assert [figures.gpu_layers for figures in decision.split_curve] == (list(range(6)) if gpus else [])
    if not decision.reasons[0].endswith("so it stays."):
        chosen = decision.chosen.predicted
        best_s = [
            1 / figures.tokens_per_s if name != "chat" else figures.tpot_s
            for figures in decision.split_curve
            if figures.best
        ]
        chosen_s = 1 / chosen.tokens_per_s if name != "chat" else chosen.tpot_s
        assert chosen_s <= min(best_s, default=chosen_s) * (1 + 1e-8)
    if name == "chat":
        assert decision.chosen.configuration.batch_size == 1


class TestSplits:
    """Hosts with GPUs: what is said of the strategy, the layers and the head, and the curve over the split."""

    ONE, TWO = {"cpu": GIB, "cuda:0": GIB}, {"cpu": GIB, "cuda:0": GIB, "cuda:1": GIB}

    @pytest.fixture
    def lacking(self, make_model, needs):
        """Memory of a host whose GPU has room for so many layers of one sequence in the shortest chunk, and a bit."""

        def memory(layers, *, head=True, spare=0):
            split = {"cpu": 8 - layers, "cuda:0": layers} if layers < 8 else {"cuda:0": 8}
            device = "cuda:0" if head else "cpu"
            needed = needs(make_model(), split, head=device, batch=1, chunk=32, context=2048)
            return {"cpu": GIB, "cuda:0": needed["cuda:0"] + spare}

        return memory

    def test_a_fast_gpu_takes_all_and_threads_are_not_spoken_of(self, decide_for):
        """A step on the GPU takes 3.6 ms, 36 on two threads; handing ids over 0.1 ms, or activations one way 0.15."""
        decision = decide_for("chat", available_bytes=self.ONE)
        chosen = decision.chosen.configuration
        assert (chosen.device_layers, chosen.head_device) == ({"cuda:0": 8}, "cuda:0")
        assert decision.reasons[1:] == (
            "All 8 layers and the head are on cuda:0: all on the CPU would be 9.7 times slower.",
            "One layer fewer on cuda:0 would be 98.6 % slower.",
            "The head is on cuda:0: on the CPU it would be 2.0 times slower.",
            "Batch 1 is the largest that the workload allows.",
            "Prompts go through 512 tokens at a time: 256 would be 1.6 % slower.",
        )

    def test_a_single_layer_is_spoken_of_as_one(self, decide_for, make_model, lacking):
        decision = decide_for("chat", model=make_model(1), available_bytes=self.ONE)
        assert decision.reasons[1].startswith("The only layer and the head are on cuda:0: all on the CPU would be ")
        decision = decide_for("chat", available_bytes=lacking(1, head=False))
        assert decision.reasons[1].startswith("1 of 8 layers is on cuda:0: all on the CPU would be ")

    def test_a_slow_gpu_is_left_alone_and_what_handing_over_takes_is_said(self, decide_for, make_costs):
        """One layer there saves nothing and costs a crossing of activations each way: 20 ms."""
        costs = make_costs(devices=("cpu", "cuda:0"), gpu_speedup=2.0, crossing_s=0.01, token_s=0.005)
        decision = decide_for("chat", costs=costs, available_bytes=self.ONE)
        assert decision.chosen.configuration.device_layers == {"cpu": 8}
        assert decision.reasons[1] == (
            "All layers are on the CPU: the best with a GPU, all 8 layers and the head on cuda:0, would be 27.8 % "
            "slower, where handing over takes 10 ms of a decode step's 46 ms."
        )
        assert not any("The head" in reason or "One layer" in reason for reason in decision.reasons)

    def test_a_gpu_without_room_for_a_layer_is_left_alone_and_what_lacks_is_said(self, decide_for):
        decision = decide_for("chat", available_bytes={"cpu": GIB, "cuda:0": 10**6})
        assert decision.chosen.configuration.device_layers == {"cpu": 8}
        assert re.fullmatch(
            r"All layers are on the CPU: with any on cuda:0 it would lack [\d.]+ MB of cuda:0's memory\.",
            decision.reasons[1],
        )
        assert [figures.broken for figures in decision.split_curve] == [None] + ["memory"] * 8

    def test_a_gpu_that_breaks_a_limit_is_left_alone(self, decide_for, make_costs):
        costs = make_costs(devices=("cpu", "cuda:0"), gpu_speedup=0.01)
        decision = decide_for("chat", costs=costs, available_bytes=self.ONE, max_tpot_ms=50)
        assert decision.reasons[1] == "All layers are on the CPU: with any on cuda:0 it would break the limits."
        assert [figures.broken for figures in decision.split_curve] == [None] + ["limits"] * 8

    def test_a_gpu_with_little_memory_takes_what_fits_and_what_lacks_is_said(self, decide_for, lacking):
        """Room for five layers and the head: a head's worth more is needed for the sixth."""
        decision = decide_for("chat", available_bytes=lacking(5))
        chosen = decision.chosen.configuration
        assert (chosen.device_layers, chosen.head_device) == ({"cpu": 3, "cuda:0": 5}, "cuda:0")
        strategy, layers, head, decode = decision.reasons[1:5]
        assert re.fullmatch(
            r"5 of 8 layers and the head are on cuda:0: all on the CPU would be 2\.\d times slower "
            r"and all on cuda:0 would lack [\d.]+ MB of cuda:0's memory\.",
            strategy,
        )
        assert re.fullmatch(
            r"One layer more on cuda:0 would lack [\d.]+ [kM]B of cuda:0's memory "
            r"and one layer fewer on cuda:0 would be \d+\.\d % slower\.",
            layers,
        )
        assert re.fullmatch(r"The head is on cuda:0: on the CPU it would be \d+\.\d % slower\.", head)
        assert decode == "Decode uses 2 threads: 1 would be 82.5 % slower."

    def test_a_head_for_which_the_gpu_has_no_room_stays_on_the_cpu_and_what_lacks_is_said(
        self, decide_for, make_model, make_costs, lacking
    ):
        """A head of 5 MB, as much as two layers of these with their cache, and fast on the CPU."""
        costs = make_costs(devices=("cpu", "cuda:0"))
        costs.decode_ends_s[0] = costs.decode_ends_s[1] * 1.5
        decision = decide_for("chat", costs=costs, available_bytes=lacking(8, head=False, spare=1000))
        chosen = decision.chosen.configuration
        assert (chosen.device_layers, chosen.head_device) == ({"cuda:0": 8}, "cpu")
        assert decision.reasons[1].startswith("All 8 layers are on cuda:0: all on the CPU would be ")
        assert "all on cuda:0" not in decision.reasons[1]
        assert re.fullmatch(
            r"The head is on the CPU: on cuda:0 it would lack [\d.]+ kB of cuda:0's memory\.", decision.reasons[3]
        )

    def test_a_head_that_the_cpu_multiplies_with_faster_stays_there(self, decide_for, make_costs):
        costs = make_costs(devices=("cpu", "cuda:0"))
        costs.decode_ends_s[0], costs.decode_ends_s[1] = 1e-4, 1e-2
        decision = decide_for("chat", costs=costs, available_bytes=self.ONE)
        assert decision.chosen.configuration.head_device == "cpu"
        assert "The head is on the CPU: on cuda:0 it would be 3.8 times slower." in decision.reasons

    def test_a_head_whose_only_other_place_breaks_a_limit_is_not_explained(self, decide_for, make_costs):
        costs = make_costs(devices=("cpu", "cuda:0"))
        decision = decide_for("chat", costs=costs, available_bytes=self.ONE, max_tpot_ms=5)
        assert decision.chosen.configuration.device_layers == {"cuda:0": 8}
        assert "One layer fewer on cuda:0 would break the limits." in decision.reasons
        assert not any("The head" in reason for reason in decision.reasons)

    def test_layers_on_several_gpus_are_told_for_each(self, decide_for, lacking):
        room = lacking(4, head=True)
        decision = decide_for("chat", available_bytes={**room, "cuda:1": room["cuda:0"]})
        assert decision.reasons[1].startswith(
            "All 8 layers and the head are on GPUs (4 on cuda:0, 4 on cuda:1): all on the CPU would be "
        )
        assert decision.reasons[2].startswith("One layer fewer on GPUs would be ")

    def test_equal_times_go_to_fewer_devices(self, decide_for, make_costs):
        """Both GPUs and both threads are free to use: crossings cost nothing and one thread is as fast as the GPU."""
        costs = make_costs(
            devices=("cpu", "cuda:0", "cuda:1"), saturates_at=1, gpu_speedup=1.0, crossing_s=0.0, token_s=0.0
        )
        costs.decode_layer_s[0] *= 1.001
        costs.prefill_layer_s[0] *= 1.001
        decision = decide_for("chat", costs=costs, available_bytes=self.TWO, noise=0.0)
        assert decision.chosen.configuration.device_layers == {"cuda:0": 8}

    def test_the_curve_has_the_best_for_every_number_of_gpu_layers(self, decide_for, lacking):
        decision = decide_for("server", available_bytes=lacking(5))
        curve, chosen = decision.split_curve, decision.chosen
        assert [figures.gpu_layers for figures in curve] == list(range(9))
        for figures in curve:
            if figures.broken is None:
                assert sum(figures.best.device_layers.values()) == 8
                assert 8 - figures.best.device_layers.get("cpu", 0) == figures.gpu_layers
                assert figures.tokens_per_s <= chosen.predicted.tokens_per_s
            else:
                assert (figures.best, figures.tokens_per_s, figures.tpot_s) == (None, None, None)
        (same,) = (figures for figures in curve if figures.best == chosen.configuration)
        assert (same.tokens_per_s, same.tpot_s) == (chosen.predicted.tokens_per_s, chosen.predicted.tpot_s)
        assert curve[8].broken == "memory"

    def test_a_host_without_gpus_has_no_curve(self, decide_for):
        assert decide_for("chat").split_curve == ()


class TestFormats:
    """The model in several weight formats; the first is what would run without tuning."""

    def decide(self, make_model, make_costs, speeds, *, models=None, available_bytes=GIB, noise=0.02, **options):
        """``speeds`` gives per format how much faster decode and prefill are than in the first."""
        alternatives = []
        for name, (decode, prefill) in speeds.items():
            costs = make_costs()
            costs = dataclasses.replace(
                costs,
                decode_layer_s=costs.decode_layer_s / decode,
                decode_ends_s=costs.decode_ends_s / decode,
                prefill_layer_s=costs.prefill_layer_s / prefill,
                prefill_ends_s=costs.prefill_ends_s / prefill,
            )
            model = (models or {}).get(name, make_model())
            alternatives.append(Alternative(name, model, costs, lambda _: "synthetic"))
        chosen, decision, _ = decide(
            alternatives,
            make_workload(options.pop("name", "chat"), alternatives[0].model, **options),
            room=Room({"cpu": available_bytes}, {"cpu": 10**6}),
            default=Configuration({"cpu": 8}, "cpu", 2, 2, 1, 512),
            noise=noise,
        )
        return chosen.format, decision

    def test_the_best_of_all_formats_is_chosen_and_the_others_are_told(self, make_model, make_costs):
        speeds = {"I2_S": (1.0, 1.0), "TQ1_0": (0.5, 1.0), "TL2": (1.25, 0.8)}
        chosen, decision = self.decide(make_model, make_costs, speeds)
        assert chosen == "TL2"
        assert decision.reasons[0] == "The default would be 25.0 % slower, beyond the noise of 2.0 %."
        assert decision.reasons[1] == (
            "The weight format is TL2: I2_S would be 25.0 % slower, TQ1_0 would be 2.5 times slower."
        )
        assert [other.format for other in decision.other_formats] == ["I2_S", "TQ1_0"]
        tpot_s = [other.candidate.predicted.tpot_s for other in decision.other_formats]
        assert tpot_s == pytest.approx([decision.chosen.predicted.tpot_s * ratio for ratio in (1.25, 2.5)])
        assert decision.speedup_over_default == pytest.approx(1.25)
        alone = self.decide(make_model, make_costs, {"I2_S": (1.0, 1.0)})[1]
        assert decision.search.points == 3 * alone.search.points

    def test_a_format_that_gains_less_than_the_noise_is_not_chosen(self, make_model, make_costs):
        speeds = {"I2_S": (1.0, 1.0), "TL2": (1.03, 1.0)}
        assert self.decide(make_model, make_costs, speeds, noise=0.02)[0] == "TL2"
        chosen, decision = self.decide(make_model, make_costs, speeds, noise=0.05)
        assert chosen == "I2_S"
        assert decision.chosen == decision.default
        assert decision.reasons[0] == "The default would be 3.0 % slower, within the noise of 5.0 %, so it stays."
        assert decision.reasons[1] == "The weight format is I2_S: TL2 would be 2.9 % faster."

    def test_a_tie_goes_to_the_usual_format(self, make_model, make_costs):
        assert self.decide(make_model, make_costs, {"I2_S": (1.0, 1.0), "TL2": (1.0, 1.0)})[0] == "I2_S"

    def test_each_format_has_its_own_memory_plan(self, make_model, make_costs, needs):
        """Only the smaller format leaves room for the whole batch; where none does, the least need is told."""
        small, large = make_model(), make_model(intermediate=2048)
        room = needs(small, {"cpu": 8}, batch=1, chunk=32, context=2048)["cpu"]
        models, speeds = {"I2_S": large, "TL2": small}, {"I2_S": (2.0, 2.0), "TL2": (1.0, 1.0)}
        chosen, decision = self.decide(make_model, make_costs, speeds, models=models, available_bytes=room)
        assert chosen == "TL2"
        assert decision.default is None
        assert decision.other_formats[0].candidate is None
        assert decision.reasons[1] == "The weight format is TL2: I2_S would break the memory or the limits."
        with pytest.raises(MemoryLimitError):
            self.decide(make_model, make_costs, speeds, models=models, available_bytes=room // 2)

    def test_a_limit_that_one_format_keeps_is_not_relaxed_for_another(self, make_model, make_costs):
        """The default server limit is 100 ms; a step of these takes 36 ms, or 144."""
        speeds = {"I2_S": (0.25, 4.0), "TL2": (1.0, 1.0)}
        chosen, decision = self.decide(make_model, make_costs, speeds, name="server")
        assert chosen == "TL2"
        assert decision.search.effective_max_tpot_s == 0.1
        assert decision.other_formats[0].candidate is None

    def test_a_limit_that_no_format_keeps_is_relaxed_for_the_best_of_all(self, make_model, make_costs):
        speeds = {"I2_S": (0.2, 1.0), "TL2": (0.25, 1.0)}
        _, decision = self.decide(make_model, make_costs, speeds, name="server")
        assert decision.search.effective_max_tpot_s == pytest.approx(1.25 * 4 * 0.036)

    def test_a_limit_that_no_format_can_keep_is_an_error(self, make_model, make_costs):
        speeds = {"I2_S": (1.0, 1.0), "TL2": (1.1, 1.0)}
        with pytest.raises(ConstraintError, match="the best that fits the memory is 3"):
            self.decide(make_model, make_costs, speeds, name="server", max_tpot_ms=5)
