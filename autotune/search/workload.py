"""Workloads: what the model is used for, the limits to keep, and the batch sizes and chunks worth pricing."""

from __future__ import annotations

import math

from autotune.bench.plan import LARGEST_CHUNK
from autotune.errors import UsageError
from autotune.records import Model, Workload
from autotune.records.configuration import WorkloadName

PROMPT_TOKENS = 512
OUTPUT_TOKENS = 256
CONTEXT_TOKENS = 2048
"""KV-cache slots reserved per sequence unless the user says otherwise, or needs or has fewer."""
LARGEST_BATCH = 4096
SMALLEST_CHUNK = 32
"""Shorter prompt chunks stream the weights too often to be worth timing."""

MAX_BATCH: dict[WorkloadName, int] = {"chat": 1, "server": 32, "offline": 64}
MAX_BATCH_WITH_GPU: dict[WorkloadName, int] = {"chat": 1, "server": 256, "offline": 256}
"""A GPU reads its weights for hundreds of sequences as fast as for one."""
SERVER_MAX_TPOT_S = 0.1
"""Ten tokens a second: about twice the speed of reading."""
SERVER_RELAXED_TPOT_RATIO = 1.25


def make_workload(
    name: str,
    model: Model,
    *,
    gpu: bool = False,
    prompt: int | None = None,
    output: int | None = None,
    context: int | None = None,
    max_batch: int | None = None,
    max_tpot_ms: float | None = None,
    max_ttft_ms: float | None = None,
) -> Workload:
    """Fills in what the user left open and checks the rest.

    Args:
        name: ``chat`` (one sequence, lowest TPOT), ``server`` (most tokens/s within a TPOT limit) or
            ``offline`` (most tokens/s).
        model: Its ``max_context`` bounds the tokens of one sequence.
        gpu: Whether there is a GPU to use, whose batches are larger.
        prompt: Prompt tokens per request.
        output: Output tokens per request.
        context: KV-cache slots reserved per sequence.
        max_batch: Largest number of sequences decoded together.
        max_tpot_ms: Longest time per output token, milliseconds. The server's own limit of 100 ms is relaxed
            where even one sequence can't keep it; a limit given here never is.
        max_ttft_ms: Longest time to the first token, milliseconds.

    Raises:
        UsageError: A value that no run could use.
    """
    if name not in MAX_BATCH:
        raise UsageError(f"the workload must be one of {', '.join(MAX_BATCH)}, got {name!r}")
    for option, count in {
        "prompt": prompt,
        "output": output,
        "context": context,
        "max-batch": max_batch,
    }.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise UsageError(f"--{option} must be a whole number of at least 1, got {count!r}")
    if context is not None and context > model.max_context:
        raise UsageError(
            f"--context must be at most {model.max_context}, the longest context of {model.name}, got {context}"
        )
    room = context if context is not None else model.max_context
    prompt_tokens, output_tokens = _lengths(prompt, output, room)
    if prompt_tokens + output_tokens > room:
        raise UsageError(
            f"prompt and output must fit the context of {room} tokens, "
            f"got {prompt_tokens} + {output_tokens} = {prompt_tokens + output_tokens}"
        )
    if max_batch is not None and max_batch > LARGEST_BATCH:
        raise UsageError(f"--max-batch must be at most {LARGEST_BATCH}, got {max_batch}")
    if name == "chat" and max_batch not in (None, 1):
        raise UsageError(f"--max-batch must be 1 for chat, which serves one sequence, got {max_batch}")
    max_tpot_s = _limit_s("max-tpot-ms", max_tpot_ms)
    relaxed_tpot_ratio = None
    if name == "server" and max_tpot_s is None:
        max_tpot_s, relaxed_tpot_ratio = SERVER_MAX_TPOT_S, SERVER_RELAXED_TPOT_RATIO
    return Workload(
        name=name,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context or max(prompt_tokens + output_tokens, min(CONTEXT_TOKENS, model.max_context)),
        max_batch=max_batch or (MAX_BATCH_WITH_GPU if gpu else MAX_BATCH)[name],
        max_tpot_s=max_tpot_s,
        max_ttft_s=_limit_s("max-ttft-ms", max_ttft_ms),
        relaxed_tpot_ratio=relaxed_tpot_ratio,
    )


def batch_grid(max_batch: int) -> tuple[int, ...]:
    """Batch sizes to price: the powers of two up to ``max_batch``, and ``max_batch`` itself; ascending."""
    return _powers_of_two(1, max_batch)


def chunk_grid(prompt_tokens: int) -> tuple[int, ...]:
    """Prefill chunks to price, in tokens: powers of two from 32 up to the prompt or 512; ascending."""
    return _powers_of_two(SMALLEST_CHUNK, min(prompt_tokens, LARGEST_CHUNK))


def _powers_of_two(first: int, last: int) -> tuple[int, ...]:
    grid = []
    while first < last:
        grid.append(first)
        first *= 2
    return (*grid, last)


def _lengths(prompt: int | None, output: int | None, room: int) -> tuple[int, int]:
    """Prompt and output tokens: what the user gave, and defaults shortened to the room that leaves."""
    if output is None:
        output = min(OUTPUT_TOKENS, max(1, room // 3 if prompt is None else room - prompt))
    if prompt is None:
        prompt = min(PROMPT_TOKENS, max(1, room - output))
    return prompt, output


def _limit_s(option: str, limit_ms: float | None) -> float | None:
    if limit_ms is None:
        return None
    if not isinstance(limit_ms, int | float) or not math.isfinite(limit_ms) or limit_ms <= 0:
        raise UsageError(f"--{option} must be a positive number of milliseconds, got {limit_ms!r}")
    return limit_ms / 1e3
