"""What a process waits for its first use of a compiled kernel: ``python tests/benchmarks/compile_time.py``.

Each kernel is built in a process of its own, once with an empty cache of compiled code and three times with the one
that this left. The time is from before the first import of this package to the kernel being ready; Python and numpy
have been started and imported before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from statistics import median

KERNELS = {
    "I2_S, m = 1": "get_kernel('native', 'I2_S')('I2_S', 6912, 2560, 1, team)",
    "I2_S, m = 64": "get_kernel('native', 'I2_S')('I2_S', 6912, 2560, 64, team)",
    "I2_S on AMX, m = 64": "get_kernel('amx', 'I2_S')('I2_S', 6912, 2560, 64, team)",
    "TL2, m = 1": "get_kernel('native', 'TL2')('TL2', 6912, 2560, 1, team)",
    "TQ2_0, m = 1": "get_kernel('native', 'TQ2_0')('TQ2_0', 6912, 2560, 1, team)",
    "F16, m = 1": "get_kernel('native', 'F16')('F16', 6912, 2560, 1, team)",
    "attention, m = 1": "get_backend('native').attention(20, 5, 128, 1, 1024, team)",
    "attention, m = 256": "get_backend('native').attention(20, 5, 128, 256, 256, team)",
    "a layer's small operations": (
        "SmallOps(LayerGeometry(2560, 6912, 20, 5, 128, 'relu2'), 1, get_backend('native').step_ops(None))"
    ),
}
BUILD = """
import time
import numpy
start = time.perf_counter()
from ternary_kernels.backends import get_backend
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.matmul import get_kernel
from ternary_kernels.reference.layer_ops import SmallOps
from ternary_kernels.team import Team
with Team(1) as team:
    {kernel}
    print(time.perf_counter() - start)
"""
REPEATS = 3


def main() -> None:
    """Print one line per kernel."""
    for name, kernel in KERNELS.items():
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TERNARY_KERNELS_CACHE": cache}
            command = [sys.executable, "-c", BUILD.format(kernel=kernel)]
            times = []
            for _ in range(1 + REPEATS):
                found = subprocess.run(command, env=environment, capture_output=True, text=True)
                if found.returncode:
                    print(f"{name:28} not here: {found.stderr.splitlines()[-1]}")
                    break
                times.append(float(found.stdout))
            else:
                print(f"{name:28} first {times[0]:5.2f} s, then {median(times[1:]):5.3f} s")


if __name__ == "__main__":
    main()
