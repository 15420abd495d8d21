"""What a GPU can run and how it holds weights, told without importing torch."""

import subprocess
import sys

import pytest

from ternary_kernels.cuda import support
from ternary_kernels.cuda.support import KERNEL_FORMATS, available_on_gpu, stored_as
from ternary_kernels.formats import FORMATS, get_format


@pytest.fixture
def installed(monkeypatch):
    """Which of the libraries there are, whatever there is here."""

    def install(*names):
        monkeypatch.setattr(support, "find_spec", lambda name: object() if name in names else None)

    return install


def reasons(capability):
    return {(entry.kernel, entry.format): entry.reason for entry in available_on_gpu(capability)}


def test_the_grid_is_every_kernel_and_format_fastest_kernels_first(installed):
    installed("torch", "triton")
    found = available_on_gpu((9, 0))
    assert [(entry.kernel, entry.format) for entry in found] == [
        (kernel, name) for kernel in ("triton", "torch") for name in FORMATS
    ]
    for entry in found:
        if entry.format in KERNEL_FORMATS[entry.kernel]:
            assert (entry.path, entry.reason) == ("sm_90", None)
        else:
            assert entry.path is None
            assert entry.reason == f"there is no {entry.kernel} kernel for {entry.format} on a GPU"


def test_triton_runs_what_a_gpu_stores_and_torch_every_ternary_format(installed):
    installed("torch", "triton")
    usable = {key for key, reason in reasons((12, 0)).items() if reason is None}
    assert {name for kernel, name in usable if kernel == "triton"} == {stored_as(name) for name in FORMATS} | {
        "I2_S_ARM"
    }
    ternary = {name for name in FORMATS if get_format(name).ternary}
    assert {name for kernel, name in usable if kernel == "torch"} == ternary | {"F16"}


def test_without_torch_nothing_runs_and_the_extra_is_named(installed):
    installed("triton")
    assert set(reasons((9, 0)).values()) == {"torch isn't installed (the extra gpu): pip install torch"}


def test_without_triton_torch_runs(installed):
    installed("torch")
    found = reasons((9, 0))
    assert found["triton", "I2_S"] == "triton isn't installed: pip install triton"
    assert found["torch", "I2_S"] is None


@pytest.mark.parametrize(("capability", "got"), [((7, 5), "7.5"), ((6, 1), "6.1"), (None, "unknown")])
def test_a_gpu_too_old_for_triton_runs_torch(installed, capability, got):
    installed("torch", "triton")
    found = reasons(capability)
    assert found["triton", "F16"] == f"triton needs a GPU of compute capability 8.0, this one's is {got}"
    assert found["torch", "F16"] is None


def test_a_path_that_is_not_known_is_none(installed):
    installed("torch", "triton")
    assert {entry.path for entry in available_on_gpu(None)} == {None}


def test_a_gpu_stores_ternary_weights_in_two_bits_and_the_rest_in_half_precision():
    assert {name: stored_as(name) for name in FORMATS} == {
        "I2_S": "I2_S",
        "I2_S_ARM": "I2_S_ARM",
        "TL1": "I2_S",
        "TL2": "I2_S",
        "TQ1_0": "I2_S",
        "TQ2_0": "I2_S",
        "IQ2_S": "F16",
        "Q8_0": "F16",
        "Q6_K": "F16",
        "F16": "F16",
        "F32": "F16",
    }
    with pytest.raises(ValueError, match="unknown weight format 'Q4_0'"):
        stored_as("Q4_0")


@pytest.mark.parametrize(("k_in", "expected"), [(2560, "I2_S"), (8640, "I2_S_ARM"), (96, "F16")])
def test_columns_that_blocks_of_128_do_not_divide_take_what_can_hold_them(k_in, expected):
    """8640 columns has the down projection of bitnet_b1_58-3B."""
    assert stored_as("TL1", k_in) == expected
    assert get_format(expected).size_bytes(32, k_in) > 0


def test_asking_imports_neither_torch_nor_triton():
    asked = (
        "import sys; from ternary_kernels.cuda.support import available_on_gpu, stored_as;"
        "available_on_gpu((9, 0)); stored_as('TL2');"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'triton')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=support.__file__.rpartition("ternary_kernels")[0],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
