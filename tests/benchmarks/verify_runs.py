"""The exam of several tunes: ``python tests/benchmarks/verify_runs.py [--runs N] [--out FOLDER] [MODEL ...]``.

Tunes a model for every workload several times, each time from nothing; then measures one grid and examines all that was
chosen. Prints Markdown: a row per run and workload, and what the runs come to. With ``--out`` results and verification
are kept there as JSON, and with ``--read`` the tables are made of these, without running anything.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from autotune.options import Options
from autotune.pipeline import measure
from autotune.records import Configuration, Exam, Verification
from autotune.store.entry import WORKLOADS
from autotune.verify.run import examine_results

MODELS = ("bitnet_b1_58-large", "bitnet-b1.58-2B-4T")


def verified(model: str, runs: int, repeats: int, out: Path | None) -> Verification:
    """All runs of a model, one after the other, and their exam."""
    results = [
        measure(model, Options(workload=workload), budget_s=None, seed=run)
        for run in range(runs)
        for workload in WORKLOADS
    ]
    found = examine_results(results, repeats=repeats)
    if out is not None:
        for place, result in enumerate(results):
            path = out / f"{model}-{result.workload.name}-{place // len(WORKLOADS)}.result.json"
            path.write_bytes(msgspec.json.encode(result))
        (out / f"{model}.verification.json").write_bytes(msgspec.json.encode(found))
    return found


def brief(chosen: Configuration) -> str:
    """Threads for decode and prefill, batch and chunk."""
    return f"{chosen.decode_threads}/{chosen.prefill_threads}, {chosen.batch_size}, {chosen.prefill_chunk}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}"


def row(model: str, run: int, exam: Exam) -> str:
    """One decision."""
    before, after = exam.predictions[0], exam.predictions[-1]
    low, high = exam.regret_interval or (None, None)
    rank = "-" if after.rank_correlation is None else f"{after.rank_correlation:.3f}"
    cells = (
        model,
        exam.workload.name,
        str(run),
        brief(exam.chosen),
        "-" if exam.measured is None else f"{exam.measured.tokens_per_s:.1f}",
        f"{percent(exam.regret)} ({percent(low)} to {percent(high)}), {percent(exam.cross_fitted_regret)}",
        *(
            f"{percent(errors.median)}, {percent(errors.p90)}"
            for each in (before, after)
            for errors in (each.parts, each.configurations)
        ),
        rank,
        f"{exam.tune_time_s:.0f}",
        f"{exam.exhaustive_time_s / exam.tune_time_s:.0f}",
        ", ".join(f"{(use.used_bytes - use.planned_bytes) / 2**20:+.0f}" for use in exam.memory),
    )
    return f"| {' | '.join(cells)} |"


def conclusions(model: str, exams: list[Exam]) -> Iterator[str]:
    """What the runs of one workload come to."""
    regrets = [exam.regret for exam in exams if exam.regret is not None]
    chosen = Counter(brief(exam.chosen) for exam in exams)
    within = sum(bool(exam.within_noise) for exam in exams)
    yield (
        f"{model}, {exams[0].workload.name}: regret {percent(median(regrets))} % median, "
        f"{percent(max(regrets))} % worst; within the noise of the best {within} of {len(exams)}; chosen "
        + ", ".join(f"{name} ({count}x)" for name, count in chosen.most_common())
    )
    for place, baseline in enumerate(exams[0].baselines):
        found = [exam.baselines[place].regret for exam in exams]
        told = [regret for regret in found if regret is not None]
        yield f"  {baseline.name}: " + (f"regret {percent(median(told))} % median" if told else str(baseline.obstacle))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the grid")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path)
    args = parser.parse_args()
    print(
        "| model | workload | run | threads, batch, chunk | tokens/s | regret % (95 %), cross-fitted "
        "| parts before: median, p90 % | configurations before | parts after | configurations after | rank | tune s "
        "| exhaustive / tune | memory MiB |"
    )
    print(f"|{' --- |' * 14}")
    exams: dict[tuple[str, str], list[Exam]] = {}
    for model in args.models:
        if args.read is None:
            found = verified(model, args.runs, args.repeats, args.out)
        else:
            path = args.read / f"{model}.verification.json"
            found = msgspec.json.decode(path.read_bytes(), type=Verification)
        for exam in found.exams:
            own = exams.setdefault((model, exam.workload.name), [])
            own.append(exam)
            print(row(model, len(own), exam))
        print(f"<!-- the grid of {model}: {len(found.grid.parts)} parts, {found.grid.spent_s:.0f} s -->", flush=True)
    print()
    for (model, _), own in exams.items():
        for line in conclusions(model, own):
            print(line)


if __name__ == "__main__":
    main()
