"""Results to report on: a real one, the same with synthetic runs, and decisions for synthetic hosts."""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

from msgspec.structs import replace

from autotune.evidence import recall
from autotune.options import Options
from autotune.recorded import replay
from autotune.records import (
    Configuration,
    Confirmation,
    Measured,
    Part,
    PartRun,
    Phase,
    Result,
    RunFailure,
    Trial,
    part_of,
)
from autotune.report.measured import Rates
from autotune.search.evaluate import serving_time_s
from autotune.store import recording, schema
from autotune.store.entry import parse

TESTS = Path(__file__).parents[1]
RECORDS = sorted((TESTS.parent / "results").glob("*.server.*.json"))
SYNTHETIC = TESTS / "hosts" / "synthetic"
LARGE = str(SYNTHETIC / "models" / "Llama-70B-class.json")
PHASES: tuple[Phase, Phase] = ("decode", "prefill")


@functools.cache
def read_record() -> Result:
    """The real record under results/."""
    return schema.decode_result(parse(RECORDS[0].read_bytes(), str(RECORDS[0])))


@functools.cache
def replayed(host: str, model: str, workload: str = "server") -> Result:
    """What is decided for a synthetic host."""
    with mock.patch("autotune.recorded.TRIALS", None):  # the study decides nothing and takes most of the time
        return replay(recording.read(SYNTHETIC / f"{host}.json"), model, Options(workload=workload))


def confirm(result: Result, *, slower: float = 1.05, samples: int = 8) -> Result:
    """A result with synthetic runs of the chosen and the default configuration, and trials in every state.

    The workload's decision stays; nothing was timed.
    """
    cost_model = recall(result, result.host).cost_model
    chosen, default = result.decision.chosen.configuration, result.decision.default
    assert default is not None

    def run(part: Part) -> PartRun:
        device_s = {name: time_s * slower for name, time_s in cost_model.predict(result.model, part).items()}
        whole_s = sum(device_s.values()) * 1.01
        wobble = [1 + 0.002 * (sample % 3 - 1) for sample in range(samples)]
        return PartRun(
            part,
            tuple(whole_s * each for each in wobble),
            {name: tuple(time_s * each for each in wobble) for name, time_s in device_s.items()},
        )

    parts = dict.fromkeys(
        part_of(each, result.workload, phase) for each in (chosen, default.configuration) for phase in PHASES
    )
    confirmation = Confirmation(
        engine="synthetic engine",
        budget_s=20.0,
        spent_s=9.5,
        stopped="decided",
        workload=result.workload,
        trials=(),
        runs=tuple(map(run, parts)),
        failures=(RunFailure(part_of(chosen, result.workload, "decode"), "crashed", "the process died"),),
        corrections=(),
        chosen=None,
        default=None,
        runner_up=default.configuration,
        overhead_share=0.012,
        memory_used={use.device: int(use.total_bytes * 0.8) for use in result.decision.chosen.predicted.memory},
        reused_layers=0,
    )
    rates = Rates(replace(result, confirmation=confirmation))
    first, second = rates.of(chosen), rates.of(default.configuration)
    assert first is not None
    assert second is not None
    other = replace(chosen, batch_size=chosen.batch_size * 2)
    trials = (
        Trial(default.configuration, "default", "complete", None, second.measured),
        Trial(chosen, "predicted best", "complete", None, first.measured),
        Trial(other, "could win", "infeasible", "a token would take too long"),
        Trial(replace(chosen, prefill_chunk=64), "could win", "pruned", "it could not become the best any more"),
        Trial(replace(chosen, decode_threads=1), "could win", "failed", "the process died"),
    )
    corrections = recall(replace(result, confirmation=confirmation), result.host).cost_model.corrections()
    return replace(
        result,
        confirmation=replace(
            confirmation, trials=trials, chosen=first.measured, default=second.measured, corrections=corrections
        ),
    )


def measured(result: Result, configuration: Configuration, tpot_s: float, ttft_s: float = 0.1) -> Measured:
    """Figures that go together."""
    workload, sequences = result.workload, configuration.batch_size
    tokens = sequences * workload.output_tokens
    rate = tokens / serving_time_s(workload, sequences, tpot_s, ttft_s)
    return Measured(tokens_per_s=rate, tpot_s=tpot_s, ttft_s=ttft_s, relative_interval=0.01)


def mixed(result: Result) -> Result:
    """A result whose every third layer has a smaller site than the others."""
    model, layer = result.model, result.model.layers[0]
    other = replace(layer, sites=(replace(layer.sites[0], n_out=layer.sites[1].n_out), *layer.sites[1:]))
    layers = tuple(other if index % 3 == 2 else layer for index in range(len(model.layers)))
    return replace(result, model=replace(model, layers=layers))
