"""Runs two versions in turns and looks at the rounds again and again, until it is known which one is slower."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple

from autotune.compare.program import Program, Side
from autotune.compare.protocol import About, Start
from autotune.compare.statistics import LOOKS, alpha_of_look, rounds_needed, signed_rank_interval
from autotune.compare.turns import Pair, Turns
from autotune.compare.verdict import (
    METRICS,
    Change,
    Compared,
    Comparison,
    change_of,
    log_times,
    objective,
    overall,
)
from autotune.errors import BudgetError, UsageError
from autotune.records import Configuration, Workload, median

_OVERTIME = 1.5
"""How far beyond the budget the first look may lie; further, and nothing could be said in it."""

From = Literal["base", "head", "own"]
Progress = Callable[[float, int, int], None]
"""Takes the share of the budget that is spent, the rounds done, and those until the next look."""


class Wish(NamedTuple):
    """What to compare.

    Attributes:
        model: Path of a config.json or GGUF file, or the name of a preset.
        workload: ``chat``, ``server`` or ``offline``.
        weight_format: To say or override the model's own.
        configuration_from: Whose configuration both run; ``own``: each its own.
        margin: Relative time; what lies within it counts as the same.
        budget_s: Wall time for the rounds.
    """

    model: str
    workload: str
    weight_format: str | None
    configuration_from: From | None
    margin: float
    budget_s: float


def compare_programs(
    base: Program, head: Program, wish: Wish, *, seed: int | None = None, progress: Progress | None = None
) -> Comparison:
    """Run both sides in turns until the verdict is known, or the time is up.

    Args:
        base: The one to be compared with.
        head: The one that may have become slower.
        wish: What to compare.
        seed: Of the order of sides; None: another one each time.
        progress: Told how far it is.

    Raises:
        BenchmarkError: A side can't be started, can't run the configuration, or died.
        BudgetError: Not even the first look could be reached.
        MemoryLimitError: The memory doesn't hold what is to be run.
        UsageError: A budget that no comparison could use.
    """
    _check(wish)
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Side(program, wish.model, wish.workload, wish.weight_format))
            for program in (base, head)
        ]
        abouts = sides[0].about, sides[1].about
        _check_models(*abouts)
        donor, notes = _donor(abouts, wish.configuration_from)
        workload = abouts[donor or 0].workload
        configurations = [abouts[index if donor is None else donor].configuration for index in (0, 1)]
        base_start, head_start = (Start(configuration, workload) for configuration in configurations)
        turns = Turns((sides[0], sides[1]), (base_start, head_start), seed)
        frame = Frame(abouts, (configurations[0], configurations[1]), workload)
        rounds, compared, spent_s = play_out(frame, turns.play, wish, progress=progress)
    if not turns.together:
        notes.append("the memory doesn't hold both sides at once, so in each round one ran after the other")
    if compared.verdict == "can't tell":
        notes.append(what_would_tell(frame, rounds, compared.changes, wish, spent_s))
    return Comparison(
        mode="interleaved",
        base=_described(base.name, abouts[0]),
        head=_described(head.name, abouts[1]),
        margin=wish.margin,
        verdict=compared.verdict,
        compared=(compared,),
        notes=tuple(notes),
        spent_s=spent_s,
        rounds=tuple(rounds),
    )


class Frame(NamedTuple):
    """What stays the same from round to round.

    Attributes:
        abouts: What BASE and HEAD said.
        configurations: What they run.
        workload: Its lengths.
    """

    abouts: tuple[About, About]
    configurations: tuple[Configuration, Configuration]
    workload: Workload


def play_out(
    frame: Frame,
    play: Callable[[], Pair],
    wish: Wish,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Pair], Compared, float]:
    """Play rounds up to each look, and stop at the one that tells, or when the time is up.

    Args:
        frame: What is compared.
        play: Plays a round of both sides.
        wish: Margin and budget.
        progress: Told how far it is.
        clock: Seconds, monotonic.

    Returns:
        The rounds, what was found, and the seconds spent.

    Raises:
        BudgetError: Not even the first look could be reached.
    """
    started = clock()
    rounds: list[Pair] = []
    for look, wanted in enumerate(LOOKS):
        # When the time is up the look is brought forward, but the first one.
        while len(rounds) < wanted and not (look and clock() - started > wish.budget_s):
            if progress is not None:
                progress(min(1.0, (clock() - started) / wish.budget_s), len(rounds), wanted)
            before = clock()
            rounds.append(play())
            if len(rounds) == 2:  # the first one may have compiled code
                _check_reach(clock() - started + (LOOKS[0] - 2) * (clock() - before), wish.budget_s)
        last = clock() - started > wish.budget_s
        compared = _look(frame, rounds, wish.margin, alpha_of_look(look, len(METRICS), last=last))
        if last or compared.verdict != "can't tell":
            break
    return rounds, compared, clock() - started


def _look(frame: Frame, rounds: Sequence[Pair], margin: float, alpha: float) -> Compared:
    """What the rounds say so far."""
    abouts, configurations, workload = frame
    formats = abouts[0].weight_format, abouts[1].weight_format
    alike = formats[0] == formats[1] and configurations[0] == configurations[1]
    changes = []
    for metric, (of_base, of_head) in zip(METRICS, _times(frame, rounds), strict=True):
        slowdown = signed_rank_interval(_ratios(of_base, of_head), alpha)
        assert slowdown is not None, f"{len(rounds)} rounds are fewer than a look takes"
        middles = median(of_base), median(of_head)
        decides = alike or metric == objective(workload)
        changes.append(change_of(metric, middles, slowdown, margin, decides=decides))
    return Compared(
        hardware_class=abouts[0].hardware_class,
        model_name=abouts[0].model_name,
        weight_format=formats,
        workload=workload,
        configuration=configurations,
        runs=(len(rounds), len(rounds)),
        alike=alike,
        changes=tuple(changes),
        verdict=overall(changes),
    )


def what_would_tell(frame: Frame, rounds: Sequence[Pair], changes: Sequence[Change], wish: Wish, spent_s: float) -> str:
    """What can't be told, and how many rounds would tell."""
    wanted = {
        change.metric: rounds_needed(_ratios(*times), math.log1p(wish.margin), len(METRICS))
        for change, times in zip(changes, _times(frame, rounds), strict=True)
        if change.decides and change.verdict == "can't tell"
    }
    needed = max(*wanted.values(), len(rounds) + 1)
    if needed > LOOKS[-1]:
        more = f"a quieter host or a wider --margin, as {LOOKS[-1]} rounds, the most there are, would hardly do"
    else:
        look = next(count for count in LOOKS if count >= needed)
        more = f"about {look} rounds, that is --budget {math.ceil(spent_s / len(rounds) * look)}"
    return f"what became of {', '.join(wanted)} can't be told after {len(rounds)} rounds; telling takes {more}"


def _times(frame: Frame, rounds: Sequence[Pair]) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """For each metric BASE's and HEAD's times, see ``log_times``, one per round."""
    of_sides = [
        [log_times(pair[side].tpot_s, pair[side].ttft_s, frame.configurations[side], frame.workload) for pair in rounds]
        for side in (0, 1)
    ]
    return list(zip(*(zip(*of_side, strict=True) for of_side in of_sides), strict=True))


def _ratios(of_base: Sequence[float], of_head: Sequence[float]) -> list[float]:
    return [head - base for base, head in zip(of_base, of_head, strict=True)]


def _donor(abouts: tuple[About, About], wanted: From | None) -> tuple[int | None, list[str]]:
    """Whose configuration both run (None: each its own), and what is to be said about that."""
    base, head = abouts
    notes = []
    if wanted == "own":
        donor = None
        words = "each side runs its own configuration"
    else:
        saved = [index for index, about in enumerate(abouts) if about.origin == "saved"]
        donor = {"base": 0, "head": 1, None: next(iter(saved), 0)}[wanted]
        words = f"both run the {abouts[donor].origin} configuration of {('BASE', 'HEAD')[donor]}"
    notes.append(words)
    if donor is not None and base.configuration != head.configuration:
        other = ("HEAD", "BASE")[donor]
        notes.append(
            f"{other} would choose another one ({abouts[1 - donor].origin}); --configuration-from own compares the "
            "decisions as well"
        )
    untuned = [name for name, about in zip(("BASE", "HEAD"), abouts, strict=True) if about.origin == "predicted"]
    if untuned:
        notes.append(
            f"{' and '.join(untuned)} chose kernels by a quick benchmark, once for all rounds, and intervals don't "
            "hold what chance had in that: `autotune tune` with that version first tells more"
        )
    if base.workload != head.workload:
        notes.append(
            f"the workload's lengths and limits are those of {('BASE', 'HEAD')[donor or 0]}; the other side's differ"
        )
    if (base.folder, base.kernels) == (head.folder, head.kernels):
        notes.append(f"both sides run the same autotune, in {base.folder}")
    return donor, notes


def _described(name: str, about: About) -> str:
    return f"{name}: autotune {about.autotune} in {about.folder}, kernels {about.kernels[:8]}, Python {about.python}"


def _check_models(base: About, head: About) -> None:
    if base.weight_format == head.weight_format and base.model_bytes != head.model_bytes:
        raise UsageError(
            f"{base.model_name} isn't the same model for both: it has {base.model_bytes:,} bytes of weights in BASE "
            f"and {head.model_bytes:,} in HEAD"
        )


def _check(wish: Wish) -> None:
    if not 0 < wish.budget_s <= 3600:
        raise UsageError(f"--budget must be more than 0 and at most 3600 seconds, got {wish.budget_s:g}")


def _check_reach(first_look_s: float, budget_s: float) -> None:
    if first_look_s > _OVERTIME * budget_s:
        raise BudgetError(
            f"a budget of {budget_s:g} s is too small: the {LOOKS[0]} rounds that a verdict takes would last about "
            f"{math.ceil(first_look_s)} s here"
        )
