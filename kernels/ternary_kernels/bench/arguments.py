"""The command line: what may be asked for, and one sentence where it can't be read."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import NoReturn

from ternary_kernels.bench.hardware import thread_counts
from ternary_kernels.bench.shapes import MODELS, Shape

DEFAULT_MODEL = "bitnet-b1.58-2B-4T"
TOKENS = (1, 4, 16, 64, 256)
MOST_TOKENS = 4096
_TOKENS_TEXT = " ".join(map(str, TOKENS))
_MEMORY = {"cold": (True,), "warm": (False,), "both": (True, False)}


class Arguments(argparse.Namespace):
    """What a user gave."""

    model: list[str]
    shape: list[Shape]
    format: list[str] | None
    kernel: list[str] | None
    m: list[int]
    threads: list[int]
    memory: tuple[bool, ...]
    seconds: float
    arena_mib: int | None
    seed: int
    peer: bool
    ggml: Path | None
    json: Path | None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage lines before it."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> Parser:
    """The parser of ``python -m ternary_kernels.bench``."""
    parser = Parser(
        prog="python -m ternary_kernels.bench",
        description="Times matrix products on this host, beside its own ceilings and ggml, in one interleaved run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        action="append",
        type=read_model,
        metavar="NAME",
        help=f"a model whose shapes to time, repeatable (default: {DEFAULT_MODEL}); one of {', '.join(MODELS)}",
    )
    parser.add_argument(
        "--shape", action="append", type=read_shape, metavar="N_OUTxK_IN", help="a shape of your own, repeatable"
    )
    parser.add_argument(
        "--format",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="weight formats (default: all ternary ones that a kernel runs; F16, Q8_0 and Q6_K for the head)",
    )
    parser.add_argument(
        "--kernel",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="kernels (default: all that run here, numpy's only for formats that no other one runs)",
    )
    parser.add_argument(
        "--m",
        action="extend",
        nargs="+",
        type=read_tokens,
        metavar="M",
        help=f"tokens at once (default: {_TOKENS_TEXT})",
    )
    parser.add_argument(
        "--threads",
        action="extend",
        nargs="+",
        type=_count,
        metavar="N",
        help="thread counts (default: powers of two, and all CPUs of this process' affinity)",
    )
    parser.add_argument(
        "--memory",
        choices=tuple(_MEMORY),
        default="both",
        help="whether each call finds its weights in memory, as decode does, or where the last one left them",
    )
    parser.add_argument(
        "--seconds", type=read_seconds, default=60.0, metavar="S", help="time for the samples (default: 60)"
    )
    parser.add_argument(
        "--arena-mib",
        type=_count,
        metavar="MIB",
        help="memory that cold weights rotate through (default: 1024, or a quarter of what is available)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of sampling")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave ggml out")
    parser.add_argument(
        "--ggml", type=Path, metavar="FOLDER", help="ggml's libraries (default: the package libggml-python)"
    )
    parser.add_argument("--json", type=read_target, metavar="FILE", help="write raw samples and figures there")
    return parser


def parse(parser: Parser, argv: list[str] | None, usable_cpus: int) -> Arguments:
    """Read the command line; what is wrong in it ends the process with a sentence and exit code 2.

    Args:
        parser: From ``make_parser``.
        argv: Arguments; None: the process' own.
        usable_cpus: Most threads there can be.
    """
    arguments = parser.parse_args(argv, Arguments())
    if arguments.model is None and arguments.shape is None:
        arguments.model = [DEFAULT_MODEL]
    arguments.model = list(dict.fromkeys(arguments.model or ()))
    arguments.shape = list(dict.fromkeys(arguments.shape or ()))
    arguments.m = sorted(set(arguments.m or TOKENS))
    arguments.threads = sorted(set(arguments.threads or thread_counts(usable_cpus)))
    arguments.memory = _MEMORY[vars(arguments)["memory"]]
    if max(arguments.threads) > usable_cpus:
        parser.error(f"argument --threads: expected at most {usable_cpus}, as many CPUs as this process may use, "
                     f"got {max(arguments.threads)}")  # fmt: skip
    if arguments.ggml is not None and not arguments.peer:
        parser.error("argument --ggml: expected no --no-peer beside it")
    return arguments


def read_model(text: str) -> str:
    """A model's name, in any case."""
    by_lower_case = {name.lower(): name for name in MODELS}
    if text.lower() not in by_lower_case:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(MODELS)}, got {text!r}")
    return by_lower_case[text.lower()]


def read_shape(text: str) -> Shape:
    """Rows and columns, like 6912x2560."""
    sizes = re.fullmatch(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", text)
    if sizes is None:
        raise argparse.ArgumentTypeError(f"expected rows x columns like 6912x2560, got {text!r}")
    return Shape((), int(sizes[1]), int(sizes[2]))


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def read_tokens(text: str) -> int:
    """A number of tokens."""
    if _count(text) > MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_TOKENS} tokens, got {text!r}")
    return int(text)


def read_seconds(text: str) -> float:
    """A duration of at most a day."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and at most a day, got {text!r}")
    return seconds


def read_target(text: str) -> Path:
    """A file that can be written, found out before the time is spent."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in a folder that can be written, got {text!r}")
    return path
