"""Stand-ins for versions of autotune: scripts that say what a side says, with synthetic samples."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from autotune.compare.protocol import About
from tests.builders import build_candidate, build_workload

CONFIGURATION = build_candidate().configuration
ABOUT = About(
    autotune="0.1.0",
    python="3.11.7",
    kernels="0" * 32,
    folder="/somewhere",
    host_label="synthetic",
    hardware_class="synthetic-2t-8g-cpu-00000000",
    model_name="synthetic/model",
    weight_format="I2_S",
    model_bytes=10**9,
    workload=build_workload(),
    configuration=CONFIGURATION,
    origin="saved",
)

SPEAKING = """\
#!{python}
import json, random, sys
samples = random.Random({seed})
print(json.dumps({{"type": "ready", "protocol": {protocol}, "about": {about}}}), flush=True)
for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    if number == {dies_after}:
        sys.exit("it fell over")
    answer = {{"type": "done", "new": "field"}}
    if asked["type"] == "run":
        usual_s = 0.02 * {slower} if asked["phase"] == "decode" else 0.5
        answer = {{"type": "samples", "samples_s": [usual_s * samples.gauss(1, 0.001) for _ in range(6)]}}
    print(json.dumps(answer), flush=True)
"""


def side(
    path: Path, *, seed: int = 0, protocol: int = 1, slower: float = 1.0, dies_after: int = -1, **about: object
) -> Path:
    """A Python executable whose autotune is a synthetic side."""
    described = msgspec.structs.replace(ABOUT, **about)
    text = SPEAKING.format(
        python=sys.executable,
        seed=seed,
        protocol=protocol,
        about=repr(msgspec.to_builtins(described)),
        slower=slower,
        dies_after=dies_after,
    )
    return script(path, text)


def script(path: Path, text: str) -> Path:
    """An executable."""
    path.write_text(text)
    path.chmod(0o755)
    return path
