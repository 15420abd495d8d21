"""Whether the 95 % ranges of predictions hold 95 %: ``python tests/benchmarks/ranges.py FOLDER``.

The folder is what ``tests/benchmarks/verify_runs.py --out FOLDER`` kept: tuned results, and one grid per model in which
every part of a configuration was run several times. Prints for each result how many of the parts that its tune didn't
run lie within the range that it predicts, and how wide the ranges are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
from msgspec.structs import replace

from autotune.outlook import Outlook, Range
from autotune.records import Part, Result, Verification, part_of


def ranges(result: Result) -> Iterator[tuple[Part, Range]]:
    """Every part of a configuration on the chosen placement, with the range of its time."""
    outlook, chosen = Outlook(result), result.decision.chosen.configuration
    space = outlook.evaluator.space
    for threads in space.threads.tolist():
        for batch in space.batches.tolist():
            asked = replace(chosen, decode_threads=threads, batch_size=batch)
            yield part_of(asked, result.workload, "decode"), outlook.at(asked).tpot_s_within
        for chunk in space.chunks.tolist():
            asked = replace(chosen, prefill_threads=threads, prefill_chunk=chunk)
            yield part_of(asked, result.workload, "prefill"), outlook.at(asked).ttft_s_within


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("| model, workload | parts not run by the tune | within their range | half its width, median |")
    print("| --- | --- | --- | --- |")
    held = total = 0
    for path in sorted(folder.glob("*.verification.json")):
        model = path.name.removesuffix(".verification.json")
        grid = msgspec.json.decode(path.read_bytes(), type=Verification).grid
        measured_s = {run.part: run.median_s for run in grid.runs()}
        for kept in sorted(folder.glob(f"{model}-*.result.json")):
            result = msgspec.json.decode(kept.read_bytes(), type=Result)
            known = {run.part for run in result.confirmation.runs} if result.confirmation is not None else set()
            found = [
                (within, measured_s[part])
                for part, within in ranges(result)
                if part in measured_s and part not in known
            ]
            inside = sum(low <= time_s <= high for (low, high), time_s in found)
            widths = [(high - low) / (high + low) for (low, high), _ in found]
            held, total = held + inside, total + len(found)
            if found:
                print(f"| {model}, {result.workload.name} | {len(found)} | {inside} | {median(widths) * 100:.1f} % |")
    print(f"\n{held} of {total} within")


if __name__ == "__main__":
    main()
