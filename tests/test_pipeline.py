"""The whole way, in this process: one small model is really measured once, and the rest follows from that."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from autotune import evidence, loader, options, pipeline
from autotune.bench.plan import plan
from autotune.bench.rivals import choose_kernels
from autotune.conclusion import conclude
from autotune.errors import (
    BenchmarkError,
    BudgetError,
    ConstraintError,
    KernelUnavailableError,
    MemoryLimitError,
    ModelError,
    ResultNotFoundError,
    UsageError,
)
from autotune.host import detect
from autotune.options import Options
from autotune.records import Campaign, Decision, Failure, GpuRun, Host, Kernel, Point, Result
from autotune.search.study import TRIALS
from autotune.search.variants import format_of
from autotune.store import cache, paths
from autotune.store.entry import encode, parse
from autotune.store.schema import decode_result
from tests.builders import build_model
from tests.cli.shop import SMALL

ROOT = Path(__file__).parents[1]
BUDGET_S = 4.0

predict = partial(Options, confirm=False)
"""Options that are content with predictions; what running adds is tested in test_confirmation.py."""


@pytest.fixture(scope="module")
def measured(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The small model for a server, really measured on this host."""
    path = tmp_path_factory.mktemp("measured") / "small.json"
    path.write_text(json.dumps(SMALL))
    return pipeline.measure(path, predict(), budget_s=BUDGET_S)


@pytest.fixture(scope="module")
def whole(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same from all points there are: nothing that is left out depends on how this host did."""
    path = tmp_path_factory.mktemp("whole") / "small.json"
    path.write_text(json.dumps(SMALL))
    found = evidence.gather(path, predict(), budget_s=BUDGET_S, quick=False, whole=True)
    workload = evidence.workload_of(predict(), found.models[0], found.host)
    return conclude(found, workload, started=0.0, trials=TRIALS)


@pytest.fixture
def model(compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model's file, and an empty cache."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(tmp_path / "system"))
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def no_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a benchmark fails."""

    def refuse(*_: object, **__: object) -> Campaign:
        raise AssertionError("expected no benchmark")

    monkeypatch.setattr(evidence.bench, "run", refuse)


def save(result: Result, wish: Options | None = None) -> None:
    cache.write(result, pipeline.request(wish or predict(), result))


def on_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is detected from now on."""
    for name in ("autotune.pipeline.detect", "autotune.host.detect.detect"):
        monkeypatch.setattr(name, lambda: host)


def benchmark_gives(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Replaces the benchmark by one that was run before; returns a list that grows with every use."""
    used: list[object] = []

    def run(*_: object, **__: object) -> Campaign:
        used.append(campaign)
        return campaign

    monkeypatch.setattr(evidence.bench, "run", run)
    return used


def without_times(decision: Decision) -> Decision:
    """A decision but for how long it took, and for the study that retuning leaves out."""
    return replace(decision, search=replace(decision.search, ranking_time_s=0.0, study=None))


def planned(result: Result, *, quick: bool) -> list[Point]:
    """The points that a run for a result's model and workload on its host would try."""
    formats = [site.format for layer in result.model.layers for site in (*layer.sites, result.model.head)]
    kernels = choose_kernels(result.campaign.kernels, formats, None)
    return [task.point for task in plan((result.model,), result.host, result.workload, kernels, quick=quick)]


def only(campaign: Campaign, kept: Callable[[Any], bool]) -> Campaign:
    """A campaign that has tried fewer points."""
    return replace(campaign, outcomes=tuple(outcome for outcome in campaign.outcomes if kept(outcome.point)))


def failed(campaign: Campaign, kind: Any, message: str) -> Campaign:
    """A campaign that has timed nothing."""
    return replace(campaign, outcomes=tuple(Failure(outcome.point, kind, message) for outcome in campaign.outcomes))


# Measuring


def test_a_measured_result_holds_its_evidence(measured: Result) -> None:
    """Host, model and workload, all that was timed, the choice and what a loader needs of it."""
    assert measured.provenance == "measured"
    assert measured.host.fingerprint == detect.detect().fingerprint
    assert measured.model.name == "small"
    assert measured.campaign.budget_s == BUDGET_S
    could_be = planned(measured, quick=False)
    tried = [outcome.point for outcome in measured.campaign.outcomes]
    assert tried == [point for point in could_be if point in tried]
    assert len(tried) + measured.campaign.spared <= len(could_be)
    chosen = measured.decision.chosen.configuration
    assert measured.device_config.cpu_threads == chosen.decode_threads
    assert measured.device_config.recommended_batch_size == chosen.batch_size
    assert measured.device_config.strategy == "CpuOnly"


def test_points_are_asked_for_until_none_could_change_the_decision(
    model: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rest is never timed: here a benchmark is told what was found when all of it was."""
    found = {outcome.point: outcome for outcome in whole.campaign.outcomes}

    def run(*arguments: Any, choose: Callable[[Campaign], dict[int, float]], **_: object) -> Campaign:
        tasks, tried = arguments[2], set[Point]()
        while True:
            known = only(whole.campaign, tried.__contains__)
            asked = {tasks[index].point for index in choose(known)} & found.keys() - tried
            if not asked:
                return known
            tried |= asked

    monkeypatch.setattr(evidence.bench, "run", run)
    result = pipeline.measure(model, predict(), budget_s=BUDGET_S)
    timed = {found.point for found in result.campaign.measurements()}
    assert 0 < len(timed) < len(whole.campaign.measurements())
    assert evidence.covers(
        result.campaign, (result.model,), result.host, result.workload, whole.campaign.kernels, quick=False
    )
    chosen = result.decision.chosen.configuration
    on = {(point.n_out, point.k_in) for point in timed if point.threads == chosen.decode_threads}
    assert {(site.n_out, site.k_in) for site in result.model.layers[0].sites} <= on


def test_a_tenth_of_the_memory_is_left_alone(measured: Result) -> None:
    """For what else runs and grows; and the worker's own memory counts as the runtime's."""
    (use,) = measured.decision.chosen.predicted.memory
    assert use.available_bytes == int(measured.host.memory.usable_bytes * 0.9)
    assert use.overhead_bytes == measured.campaign.runtime_overhead_bytes > 10e6


def test_the_default_is_what_would_run_without_tuning(measured: Result) -> None:
    """The loader's fallback, so the comparison is with what a user has now."""
    fallback = loader.get_fallback_config()
    assert measured.decision.default is not None
    default = measured.decision.default.configuration
    assert (default.decode_threads, default.batch_size) == (fallback.cpu_threads, fallback.recommended_batch_size)


def test_nothing_is_saved_by_measuring_alone(model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the caller's decision."""
    benchmark_gives(measured.campaign, monkeypatch)
    pipeline.measure(model, predict(), budget_s=1.0)
    assert not (model.parent / "cache").exists()


def test_the_same_measurements_give_the_same_result(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study included, for its seed is fixed; another seed is another study, and no other choice."""
    benchmark_gives(measured.campaign, monkeypatch)
    on_host(measured.host, monkeypatch)
    again, other = (pipeline.measure(model, predict(), budget_s=BUDGET_S, seed=seed) for seed in (0, 1))
    assert again.decision.search.study == measured.decision.search.study
    assert without_times(again.decision) == without_times(other.decision) == without_times(measured.decision)
    assert other.decision.search.study is not None
    assert other.decision.search.study.seed == 1


def workers() -> list[psutil.Process]:
    """The benchmark's processes that are alive; one that has ended and waits to be collected has no command line."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "autotune.bench.worker" in child.cmdline():
                found.append(child)
    return found


def test_progress_is_told_and_a_killed_worker_is_survived(model: Path) -> None:
    """As when the kernel ends it for lack of memory: another worker goes on with the rest.

    Unless it was at something that no decision can do without, which is then told.
    """
    seen: list[tuple[float, int, int]] = []
    killed: list[int] = []

    def progress(share: float, timed: int, points: int) -> None:
        seen.append((share, timed, points))
        if timed and not killed:
            (worker,) = workers()
            worker.kill()
            killed.append(worker.pid)

    try:
        result = pipeline.measure(model, predict(), budget_s=3.0, progress=progress)
    except BenchmarkError as error:
        assert "SIGKILL" in str(error)  # noqa: PT017 (one of two right outcomes)
    else:
        assert {failure.kind for failure in result.campaign.failures()} <= {"out_of_memory", "budget"}
        assert result.campaign.measurements()
    assert killed
    assert not workers()
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert all(timed <= points for _, timed, points in seen)
    asked = [points for _, _, points in seen]
    assert asked == sorted(asked)


# What a result rests on


@pytest.mark.usefixtures("no_benchmark")
def test_what_does_not_fit_is_told_before_the_benchmark(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it needs and what would fit."""
    memory = replace(measured.host.memory, usable_bytes=2_000_000)
    on_host(replace(measured.host, memory=memory), monkeypatch)
    with pytest.raises(MemoryLimitError, match=r"small needs .* would fit"):
        pipeline.measure(model, predict(), budget_s=1.0)


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (predict(workload="bogus"), UsageError),
        (predict(prompt=0), UsageError),
        (predict(max_tpot_ms=float("nan")), UsageError),
        (predict(format="bogus"), UsageError),
    ],
    ids=str,
)
def test_bad_options_are_told_before_the_benchmark(model: Path, wish: Options, error: type[Exception]) -> None:
    """By all ways to a result."""
    with pytest.raises(error):
        pipeline.measure(model, wish, budget_s=1.0)
    for force in (False, True):
        with pytest.raises(error):
            pipeline.tune(model, wish, force=force)


@pytest.mark.usefixtures("no_benchmark")
def test_a_missing_model_is_told_before_the_benchmark(model: Path) -> None:
    """Also where a result is only looked up."""
    missing = model.with_name("missing.json")
    with pytest.raises(ModelError, match=r"missing\.json"):
        pipeline.tune(missing, predict())
    with pytest.raises(ModelError, match=r"missing\.json"):
        pipeline.retune(missing)


def test_a_budget_that_ended_too_early_is_told(model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is missing, and a longer budget than the one that was too short, however long that was."""
    late = failed(measured.campaign, "budget", "the time budget ended before it was timed")
    for budget_s, advice in ((2.0, options.DEFAULT_BUDGET_S + options.RUN_BUDGET_S), (200.0, 800.0)):
        benchmark_gives(replace(late, budget_s=budget_s), monkeypatch)
        with pytest.raises(BudgetError, match=f"a budget of {budget_s:g} s is too small.*try --budget {advice:g}$"):
            pipeline.measure(model, predict(), budget_s=budget_s)


def test_a_benchmark_that_failed_is_told(model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first failure's words: a longer budget wouldn't help."""
    benchmark_gives(failed(measured.campaign, "wrong_result", "the kernel disagrees with the oracle"), monkeypatch)
    with pytest.raises(BenchmarkError, match=r"could not be timed.*the kernel disagrees with the oracle"):
        pipeline.measure(model, predict(), budget_s=1.0)


def test_a_missing_product_is_not_blamed_on_another_ones_failure(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ceilings weren't reached in time, and products failed for reasons of their own."""
    crashed = failed(measured.campaign, "crashed", "the worker died")
    outcomes = tuple(
        replace(failure, kind="budget") if failure.point.op in ("read", "peak") else failure
        for failure in crashed.failures()
    )
    benchmark_gives(replace(crashed, outcomes=outcomes), monkeypatch)
    with pytest.raises(BudgetError, match=r"it ended before read was timed"):
        pipeline.measure(model, predict(), budget_s=1.0)


def test_points_that_were_not_timed_are_noted(measured: Result) -> None:
    """One line for each kind of failure."""
    first, second, *rest = measured.campaign.measurements()[::-1]
    outcomes = (*rest, Failure(first.point, "hung", "no sample came"), Failure(second.point, "budget", "time was up"))
    saved = replace(measured, campaign=replace(measured.campaign, outcomes=outcomes))
    result = pipeline.conclude_again(saved, saved.workload, saved.host)
    total = len(outcomes)
    assert f"1 of {total} points were not timed (hung): no sample came" in result.warnings
    assert f"1 of {total} points were not timed (budget): time was up" in result.warnings


def test_gpus_that_were_not_timed_are_noted(measured: Result) -> None:
    """With the reason; the decision is about the CPU."""
    run = GpuRun(devices=("cuda:0",), failure="the driver is too old for torch")
    campaign = replace(measured.campaign, gpus=(run,))
    result = pipeline.conclude_again(replace(measured, campaign=campaign), measured.workload, measured.host)
    assert [line for line in result.warnings if "cuda:0" in line] == [
        "no layer is put on cuda:0: the driver is too old for torch"
    ]
    assert (result.device_config.strategy, result.device_config.gpu_memory_fraction) == ("CpuOnly", None)


def test_unknown_noise_counts_as_five_percent(measured: Result) -> None:
    """Where no point has enough samples to tell."""
    noise = replace(measured.campaign.noise, median_relative_interval=None)
    saved = replace(measured, campaign=replace(measured.campaign, noise=noise))
    reasons = pipeline.conclude_again(saved, saved.workload, saved.host).decision.reasons
    assert "the noise of 5.0 %" in reasons[0] or "best configuration of all" in reasons[0]


# The cache


@pytest.mark.usefixtures("no_benchmark")
def test_a_saved_result_is_the_answer(model: Path, measured: Result) -> None:
    """As it was saved, for the same wish and any shorter budget."""
    save(measured)
    assert pipeline.tune(model, predict(), budget_s=BUDGET_S) == measured
    assert pipeline.tune(str(model), predict(), budget_s=1.0, quick=True) == measured


def test_tuning_saves_what_it_found(model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the next one who asks, in the cache's first folder."""
    used = benchmark_gives(measured.campaign, monkeypatch)
    result = pipeline.tune(model, predict(), budget_s=BUDGET_S)
    assert len(used) == 1
    assert loader.load_result(model) == result
    assert pipeline.tune(model, predict(), budget_s=BUDGET_S) == result
    assert len(used) == 1


@pytest.mark.parametrize(
    "arguments",
    [{"force": True}, {"budget_s": BUDGET_S + 1}, {"wish": predict(max_batch=600)}, {"wish": predict(format="F16")}],
    ids=str,
)
def test_what_the_saved_measurements_cannot_answer_is_measured(
    arguments: dict[str, Any], model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By force, with more time, for a larger batch, in another format."""
    save(measured)
    arguments = {"budget_s": BUDGET_S, **arguments}
    campaigns: list[float] = []

    def run(*_: object, budget_s: float, **__: object) -> Campaign:
        campaigns.append(budget_s)
        raise BenchmarkError("far enough")

    monkeypatch.setattr(evidence.bench, "run", run)
    with pytest.raises(BenchmarkError, match="far enough"):
        pipeline.tune(model, arguments.pop("wish", predict()), **arguments)
    assert campaigns == [arguments["budget_s"]]


@pytest.mark.usefixtures("no_benchmark")
@pytest.mark.parametrize(
    "wish", [predict(workload="chat"), predict(workload="offline", max_batch=8), predict(context=800)], ids=str
)
def test_saved_measurements_answer_other_wishes(wish: Options, model: Path, whole: Result) -> None:
    """Of other workloads as well, where no point is missing; the answer is saved under its own."""
    save(whole)
    result = pipeline.tune(model, wish, budget_s=BUDGET_S)
    assert result.campaign == whole.campaign
    assert result.workload.name == wish.workload
    assert loader.load_result(model, wish.workload) == result


@pytest.mark.usefixtures("no_benchmark")
def test_measurements_of_another_workload_are_used_where_its_own_do_not_suffice(model: Path, whole: Result) -> None:
    """A short run for chat doesn't stand in the way of a long one for a server."""
    chat = pipeline.conclude_again(whole, replace(whole.workload, name="chat", max_batch=1), whole.host)
    save(replace(chat, campaign=only(chat.campaign, lambda point: point.m <= 16)), predict(workload="chat"))
    save(whole)
    result = pipeline.tune(model, predict(workload="chat", context=800), budget_s=BUDGET_S)
    assert result.campaign == whole.campaign


def test_a_quick_result_answers_no_full_wish(model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its budget was, it has fewer points; but the next quick wish is answered."""
    monkeypatch.setattr(options, "QUICK_BUDGET_S", BUDGET_S / 2)
    quick = set(planned(measured, quick=True))
    used = benchmark_gives(only(measured.campaign, lambda point: point in quick), monkeypatch)
    result = pipeline.tune(model, predict(), budget_s=BUDGET_S, quick=True)
    assert pipeline.tune(model, predict(), budget_s=BUDGET_S, quick=True) == result
    assert len(used) == 1
    used_in_full = benchmark_gives(measured.campaign, monkeypatch)
    full = pipeline.tune(model, predict(), budget_s=BUDGET_S)
    assert len(used_in_full) == 1
    assert full.campaign == measured.campaign
    assert pipeline.tune(model, predict(), budget_s=BUDGET_S, quick=True) == full


def test_a_result_that_cannot_be_saved_is_returned(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning that says why: below a file there can be no folder."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(model / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(model / "xdg"))
    benchmark_gives(measured.campaign, monkeypatch)
    with pytest.warns(cache.StoreWarning, match="was not saved"):
        result = pipeline.tune(model, predict(), budget_s=BUDGET_S)
    assert result.campaign == measured.campaign


def test_an_entry_that_cannot_be_understood_is_replaced(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with an intact checksum and the very same wish, but with records of another shape."""
    path = Path(cache.write(measured, pipeline.request(predict(), measured)))
    entry = parse(path.read_bytes(), str(path))
    path.write_bytes(encode(entry.key, entry.request_json, entry.device_config_json, b'{"surprise":1}'))
    used = benchmark_gives(measured.campaign, monkeypatch)
    with pytest.warns(cache.StoreWarning, match="surprise"):
        result = pipeline.tune(model, predict(), budget_s=BUDGET_S)
    assert len(used) == 1
    assert loader.load_result(model) == result


def test_a_result_survives_its_file(measured: Result) -> None:
    """All of it, to the last bit of the last sample."""
    _, raw = cache.document(measured, pipeline.request(predict(), measured))
    assert decode_result(parse(raw, "")) == measured
    assert msgspec.json.decode(raw)["result"]["campaign"]["budget_s"] == BUDGET_S


# Choosing again


@pytest.mark.usefixtures("no_benchmark")
def test_retuning_with_the_same_wish_gives_the_same_decision(model: Path, measured: Result) -> None:
    """Nothing but the measurements goes in, so nothing else can come out; only the study is left out."""
    again = pipeline.conclude_again(measured, measured.workload, measured.host)
    assert without_times(again.decision) == without_times(measured.decision)
    assert again.decision.search.study is None
    for name in ("device_config", "host", "tier", "model", "workload", "cost_model", "campaign", "warnings"):
        assert getattr(again, name) == getattr(measured, name), name


@pytest.mark.usefixtures("no_benchmark")
def test_retuning_is_concluding_from_the_saved_measurements(
    model: Path, measured: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the wish that is given, under the memory that the host has now."""
    save(measured)
    memory = replace(measured.host.memory, usable_bytes=measured.host.memory.usable_bytes // 2)
    now = replace(measured.host, memory=memory)
    on_host(now, monkeypatch)
    result = pipeline.retune(model, predict(workload="offline", max_batch=4))
    expected = pipeline.conclude_again(measured, result.workload, now)
    assert without_times(result.decision) == without_times(expected.decision)
    assert result.device_config == expected.device_config
    assert result.decision.chosen.configuration.batch_size <= 4
    assert result.decision.chosen.predicted.memory[0].available_bytes == int(memory.usable_bytes * 0.9)


@pytest.mark.usefixtures("no_benchmark")
def test_retuning_keeps_limits_or_says_that_none_can(model: Path, measured: Result) -> None:
    """A limit that can be kept is kept, one that can't isn't relaxed; without enough memory nothing is chosen."""
    save(measured)
    assert measured.decision.runner_up is not None
    single_s = pipeline.retune(model, predict(workload="chat")).decision.chosen.predicted.tpot_s
    limited = pipeline.retune(model, predict(max_tpot_ms=single_s * 1.5e3))
    assert limited.decision.chosen.predicted.tpot_s <= single_s * 1.5
    with pytest.raises(ConstraintError, match="time per output token can't be kept"):
        pipeline.retune(model, predict(max_tpot_ms=single_s * 0.5e3))
    with pytest.raises(UsageError, match="--prompt"):
        pipeline.retune(model, predict(prompt=-1))
    with pytest.raises(UsageError, match="chat, server, offline"):
        pipeline.retune(model, predict(workload="bogus"))


def test_what_was_extrapolated_is_noted(whole: Result) -> None:
    """Retuning measures nothing: beyond the timed m it is a guess that says so."""
    saved = replace(whole, campaign=only(whole.campaign, lambda point: point.op != "matmul" or point.m <= 16))
    result = pipeline.conclude_again(saved, saved.workload, saved.host)
    assert any("extrapolated, the largest timed m is 16" in line for line in result.warnings)


@pytest.mark.usefixtures("no_benchmark")
def test_retuning_needs_measurements(model: Path) -> None:
    """And names the command that makes them."""
    with pytest.raises(ResultNotFoundError, match=r"no saved measurements of .*small\.json: run `python -m autotune "):
        pipeline.retune(model)


def test_retuning_starts_no_process_and_loads_no_optuna(model: Path, measured: Result) -> None:
    """In an interpreter of its own, where every attempt to start one would be seen."""
    save(measured)
    script = """
import sys
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in (
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system") else None)
from autotune.options import Options
from autotune.pipeline import retune
result = retune(sys.argv[1], Options(workload="chat"))
assert result.campaign.measurements()
print(sorted({name.partition(".")[0] for name in sys.modules} & {"optuna", "torch", "pandas"}), started)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[] []\n", "")


def test_a_model_that_is_not_the_saved_one_has_nothing_saved(model: Path, measured: Result) -> None:
    """One layer more, and all has to be measured."""
    save(measured)
    save(replace(measured, model=build_model()))
    model.write_text(json.dumps({**SMALL, "num_hidden_layers": 3}))
    with pytest.raises(ResultNotFoundError):
        pipeline.retune(model)


# Kernels


FOUND = (
    Kernel("native", "I2_S", None, "llvmlite is not installed"),
    Kernel("native", "F16", None, "llvmlite is not installed"),
    *(Kernel("numpy", name, None, None) for name in ("I2_S", "I2_S_ARM", "F16")),
)
"""As the registry has it where llvmlite is missing."""


@pytest.fixture
def numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that runs numpy's kernels and no others."""
    for module in (pipeline, evidence):
        monkeypatch.setattr(module, "find_kernels", lambda host: FOUND)


@pytest.fixture(scope="module")
def by_numpy(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The small model for a server, really measured with --kernel numpy."""
    path = tmp_path_factory.mktemp("by_numpy") / "small.json"
    path.write_text(json.dumps(SMALL))
    return pipeline.measure(path, predict(kernel="numpy"), budget_s=BUDGET_S)


def test_a_result_says_which_kernel_is_fastest_for_each_site(whole: Result) -> None:
    """At the values of m that the chosen configuration runs with, from its own measurements."""
    chosen = whole.decision.chosen.configuration
    sites = {(site.format, site.n_out, site.k_in) for layer in whole.model.layers for site in layer.sites}
    head = whole.model.head
    assert [(kernels.format, kernels.n_out, kernels.k_in) for kernels in whole.kernels[:-1]] == sorted(
        sites, key=[(kernels.format, kernels.n_out, kernels.k_in) for kernels in whole.kernels].index
    )
    times = {found.point: found.median_s for found in whole.campaign.measurements()}
    for kernels in whole.kernels:
        assert max(map(int, kernels.decode)) <= chosen.batch_size
        assert bool(kernels.prefill) == ((kernels.format, kernels.n_out, kernels.k_in) in sites)
        for m, kernel in kernels.decode.items():
            rivals = {
                point.kernel: time_s
                for point, time_s in times.items()
                if (point.op, point.format, point.n_out, point.k_in, point.m, point.threads)
                == ("matmul", kernels.format, kernels.n_out, kernels.k_in, int(m), chosen.decode_threads)
            }
            assert kernel == min(rivals, key=rivals.__getitem__)
    assert (whole.kernels[-1].n_out, whole.kernels[-1].k_in) == (head.n_out, head.k_in)


def test_a_forced_kernel_is_the_only_one_timed(by_numpy: Result) -> None:
    """And the result says that its speeds are numpy's, and why."""
    assert {found.point.kernel for found in by_numpy.campaign.measurements()} == {"numpy"}
    assert by_numpy.campaign.kernel == "numpy"
    (warning,) = (line for line in by_numpy.warnings if "numpy kernels" in line)
    assert "as --kernel asked for: they are bound by computing" in warning
    assert "llvmlite" not in warning


def test_without_llvmlite_speeds_are_numpys_and_the_remedy_is_named(by_numpy: Result) -> None:
    """With what that means for the advice on threads."""
    campaign = replace(by_numpy.campaign, kernel=None, kernels=FOUND)
    saved = replace(by_numpy, campaign=campaign)
    (warning,) = (
        line for line in pipeline.conclude_again(saved, saved.workload, saved.host).warnings if "numpy kernels" in line
    )
    assert "the native ones can't run: llvmlite is not installed" in warning
    assert "often needs fewer threads" in warning
    assert warning.endswith("`pip install llvmlite` gives the native ones")


def test_where_native_kernels_failed_speeds_are_numpys_too(by_numpy: Result) -> None:
    """No installation would help."""
    kernels = (Kernel("native", "I2_S", "avx2", None), Kernel("native", "F16", "avx2", None))
    saved = replace(by_numpy, campaign=replace(by_numpy.campaign, kernel=None, kernels=kernels))
    warnings = pipeline.conclude_again(saved, saved.workload, saved.host).warnings
    assert any("the native ones failed" in line and "llvmlite" not in line for line in warnings)


def test_measurements_answer_only_for_the_kernel_they_are_of(
    model: Path, by_numpy: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --kernel all are rivals, so it is measured anew; retuning says what there is nothing of."""
    save(by_numpy, predict(kernel="numpy"))
    used = benchmark_gives(by_numpy.campaign, monkeypatch)
    assert pipeline.tune(model, predict(kernel="numpy"), budget_s=BUDGET_S) == by_numpy
    assert pipeline.retune(model, predict(kernel="numpy", max_batch=2)).campaign == by_numpy.campaign
    assert not used
    with pytest.raises(ResultNotFoundError, match=r"no saved measurements of .*small\.json: run"):
        pipeline.retune(model)
    with pytest.raises(ResultNotFoundError, match=r"small\.json with --kernel native: run .* --kernel native`"):
        pipeline.retune(model, predict(kernel="native"))
    pipeline.tune(model, predict(), budget_s=BUDGET_S)
    assert len(used) == 1


@pytest.mark.usefixtures("no_benchmark", "numpy_alone")
def test_a_kernel_that_cannot_run_is_told_before_the_benchmark(model: Path) -> None:
    """With the reason; one that doesn't exist with those that do."""
    with pytest.raises(KernelUnavailableError, match="'native' can't run this here: llvmlite is not installed"):
        pipeline.tune(model, predict(kernel="native"))
    with pytest.raises(UsageError, match="--kernel must be one of native, numpy, got 'abacus'"):
        pipeline.tune(model, predict(kernel="abacus"))


# Formats


def test_with_auto_the_format_is_chosen_and_the_others_can_be_chosen_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One campaign over all formats with a kernel; the evidence suffices to decide again."""
    wish = predict(format="auto", kernel="numpy")
    result = pipeline.tune(model, wish, budget_s=3.0)
    compared = {format_of(result.model), *(format_of(other) for other in result.alternatives)}
    assert compared == {
        found.point.format for found in result.campaign.measurements() if found.point.op == "matmul"
    } - {"F16"}
    assert {other.format for other in result.decision.other_formats} == compared - {format_of(result.model)}
    assert loader.load_result(model, format="auto") == result
    assert loader.load_result(model) is None
    monkeypatch.setattr(evidence.bench, "run", None)
    again = pipeline.conclude_again(result, result.workload, result.host)
    assert again.model == result.model
    assert without_times(again.decision) == without_times(result.decision)
    assert pipeline.retune(model, wish._replace(workload="chat")).campaign == result.campaign


# Limits


def test_measurements_of_a_run_that_no_limit_can_be_kept_with_are_not_lost(
    model: Path, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They answer the next limit; until then a loader gets the best without one, or what was saved before."""
    used = benchmark_gives(whole.campaign, monkeypatch)
    for _ in range(2):
        with pytest.raises(ConstraintError, match=r"per output token can't be kept.*`autotune retune` answers another"):
            pipeline.tune(model, predict(max_tpot_ms=1e-6), budget_s=BUDGET_S)
    result = pipeline.tune(model, predict(max_tpot_ms=1e6), budget_s=BUDGET_S)
    assert result.campaign == whole.campaign
    assert len(used) == 1
    with pytest.raises(ConstraintError):
        pipeline.tune(model, predict(max_tpot_ms=1e-6), budget_s=BUDGET_S)
    assert loader.load_result(model) == result
