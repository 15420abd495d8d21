"""A folder with a model file and a cache of its own, and a way to run autotune there as a user does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autotune.records import Result
from autotune.store import paths
from autotune.store.entry import parse

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}
HUGE = {
    **SMALL,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1000,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
}
BUDGET = ("--budget", "2.5", "--no-confirm")
HEAVY = {"numpy", "torch", "optuna", "pandas", "msgspec", "gguf", "psutil", "rich", "archspec", "pynvml", "filelock"}


@dataclass(frozen=True)
class Answer:
    """What a process left: exit code, standard output and standard error."""

    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def result(self) -> Result:
        """The result in a printed entry."""
        return msgspec.json.decode(parse(self.out, "").result_json, type=Result)


class Shop:
    """A folder with model files, a cache in it, and a way to run autotune there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.model = folder / "small.json"

    def environment(self, **changes: str) -> dict[str, str]:
        """As a user has it, with caches below the folder."""
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "COLUMNS")}
        named = {"AUTOTUNE_CACHE": str(self.cache), "XDG_CACHE_HOME": str(self.folder / "xdg")}
        return {**ours, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))), **named, **changes}

    def start(self, *arguments: str | Path, start_new_session: bool = False) -> subprocess.Popen[bytes]:
        """Start autotune without waiting for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "autotune", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=start_new_session,
        )

    def run(self, *arguments: str | Path, stdout: Any = subprocess.PIPE, **changes: str) -> Answer:
        """Run autotune to its end; keywords are environment variables."""
        done = subprocess.run(
            [sys.executable, "-m", "autotune", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout or b"", done.stderr.decode())

    def write(self, name: str, content: object) -> Path:
        """A file in the folder: bytes and texts as they are, anything else as JSON."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def entries(self) -> list[Path]:
        """The saved results."""
        return sorted((self.cache / paths.LAYOUT).rglob("*.json"))

    def state(self) -> dict[str, tuple[int, bytes]]:
        """All that lies in the cache, byte for byte, with the times of last change."""
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for folder in (self.cache, self.folder / "xdg")
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def assert_one_sentence(answer: Answer, code: int) -> None:
    """What bad input gets: its exit code, one sentence, and nothing on standard output."""
    assert answer.code == code, answer.err
    assert answer.out == b""
    assert re.fullmatch(r"autotune: [^\n]+\n", answer.err), answer.err
