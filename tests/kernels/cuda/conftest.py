"""The device that GPU kernels are tested on: a GPU where there is one, else torch's CPU and Triton's interpreter."""

import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from ternary_kernels.activations import Quantized

if find_spec("torch") is None:  # only what does without it can be tested
    collect_ignore = [file.name for file in Path(__file__).parent.glob("test_*.py") if file.name != "test_support.py"]
else:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined

    from ternary_kernels.cuda.activations import with_sums
    from ternary_kernels.cuda.product import MODULES

    for kernel, module in MODULES.items():  # so that tests that run over PRODUCTS find every kernel there
        if find_spec(kernel) is not None:
            importlib.import_module(module)


@pytest.fixture(scope="session")
def device():
    """Where kernels run here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def put(device):
    """Copies an array, or quantised activations, to the device."""

    def put(value):
        if isinstance(value, Quantized):
            return with_sums(*(torch.tensor(part, device=device) for part in value))
        return torch.tensor(value, device=device)

    return put
