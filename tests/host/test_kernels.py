"""What the kernels need of a CPU is what a host tells of it."""

from __future__ import annotations

import platform

import pytest

from autotune.host.cpu import _RELEVANT
from autotune.host.detect import detect
from autotune.host.kernels import describe_kernels, find_kernels, marked, to_json
from autotune.records import Kernel
from ternary_kernels.formats import FORMATS
from ternary_kernels.native.isa import AMX, PATHS, runnable, this_machine


@pytest.mark.parametrize("path", [*PATHS, AMX], ids=lambda path: path.name)
def test_every_instruction_set_that_a_path_needs_is_looked_for(path):
    """A flag left out would make a host seem to lack the path, and the fingerprint not notice that it has it."""
    assert set(path.flags) <= _RELEVANT


def test_this_host_is_told_the_path_that_its_kernels_take():
    paths = {kernel.path for kernel in find_kernels(detect()) if kernel.kernel == "native" and not kernel.reason}
    assert paths <= {runnable(platform.machine(), this_machine()[1])[0].name}


def test_every_kernel_is_listed_with_every_format_and_why_not():
    found = find_kernels(detect())
    names = {kernel.kernel for kernel in found}
    assert {(kernel.kernel, kernel.format) for kernel in found} == {(name, held) for name in names for held in FORMATS}
    assert {"numpy", "native", "amx"} <= names
    assert all(kernel.reason is None for kernel in found if (kernel.kernel, kernel.format) == ("numpy", "I2_S"))


def test_lossy_formats_are_marked_wherever_they_are_offered_after_the_ternary_ones():
    kernels = (Kernel("numpy", "IQ2_S", None, None), Kernel("numpy", "I2_S", None, None))
    assert marked("IQ2_S") == "IQ2_S (lossy)"
    assert describe_kernels(kernels) == [("Kernel numpy", "I2_S, IQ2_S (lossy) (runs here)")]
    assert [kernel["lossy"] for kernel in to_json(kernels)] == [True, False]
