"""The last round: in which order the best few are run again. Synthetic runs."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

from msgspec.structs import replace

from autotune.records import Configuration, PartRun
from autotune.search.figures import Runs
from autotune.search.finalists import rerun
from autotune.search.trials import Allowance
from tests.builders import build_workload


def test_in_a_turn_weights_move_once_for_all_parts_of_a_placement():
    """Moving them may take longer than all samples; the order is another one in every turn all the same."""
    workload = build_workload(name="offline", max_tpot_s=None, relaxed_tpot_ratio=None)
    on_cpu = Configuration({"cpu": 2}, "cpu", decode_threads=2, prefill_threads=2, batch_size=4, prefill_chunk=64)
    on_gpu = replace(on_cpu, device_layers={"cuda:0": 2}, head_device="cuda:0")
    finalists = [replace(one, batch_size=size) for one in (on_cpu, on_gpu) for size in (1, 2, 4)]
    runs, asked = Runs(workload, 0.05), []
    for number, one in enumerate(finalists):
        decode, prefill = runs.halves(one)
        if runs.of(prefill) is None:
            runs.add(PartRun(prefill, (0.1,), {"cpu": (0.1,)}))
        runs.add(PartRun(decode, (0.01 * one.batch_size + 1e-5 * number,), {"cpu": (0.01,)}))

    def sample(_, configuration, phase, *, at_most_s):
        asked.append((configuration.head_device, configuration.batch_size, phase))

    trials = SimpleNamespace(
        standings=lambda: [runs.standing(one) for one in finalists] if len(asked) < 60 else [],
        sample=sample,
        part_s=1.0,
        failures=[],
    )
    clock = Allowance(100.0, lambda: 0.0)
    assert rerun(trials, None, runs, finalists[0], noise=0.01, allowance=clock, seed=0)
    length = len(set(asked))
    turns = [asked[start : start + length] for start in range(0, len(asked), length)]
    assert length > 4
    for each in turns:
        assert len(set(each)) == length
        placements = [placement for placement, *_ in each]
        assert sum(one != other for one, other in pairwise(placements)) == 1
    assert turns[0] != turns[1]
