"""Results to adapt: of a measured host without a GPU, and of synthetic ones with one or two."""

from __future__ import annotations

import functools
from collections.abc import Callable

from autotune.options import Options
from autotune.recorded import replay
from autotune.records import Result
from autotune.store.recording import read
from tests import replayed
from tests.hosts.synthetic.machines import LARGE


@functools.cache
def two_gpus() -> Result:
    """A synthetic server with two unequal GPUs, which hold a model of 70B parameters but for a layer."""
    file = replayed.HOSTS / "synthetic" / "server-two-sockets-unequal-gpus.json"
    return replay(read(file), LARGE, Options(workload="server"))


MAKERS: dict[str, Callable[[], Result]] = {
    "CPU": replayed.on_cpu,
    "CPU, chat": lambda: replayed.on_cpu("chat"),
    "GPU": replayed.on_gpu,
    "GPU, chat": lambda: replayed.on_gpu("chat"),
    "hybrid": replayed.hybrid,
    "two GPUs": two_gpus,
}
