"""What is known of GPUs without one: kernels, formats, arithmetic. Light: torch is looked for, not imported."""

from __future__ import annotations

from importlib.util import find_spec

from ternary_kernels.formats import FORMATS, get_format
from ternary_kernels.registry import Availability

KERNEL_FORMATS = {
    "triton": ("I2_S", "I2_S_ARM", "F16"),
    "torch": ("I2_S", "I2_S_ARM", "TL1", "TL2", "TQ1_0", "TQ2_0", "F16"),
}
"""Formats of each kernel, the kernel first that is expected to be faster."""

TRITON_CAPABILITY = 8, 0
"""Least compute capability that Triton supports. Source: triton's README, Compatibility."""

INT8_CAPABILITY = 7, 5
"""Least compute capability with int8 tensor cores. Source: NVIDIA, Turing Tuning Guide, 1.4.1.2, Tensor Operations."""

PEAK_SIZE = 4096, 4096, 4096
"""m, n_out and k_in of a peak: tiles enough for some four rounds over the largest GPU's multiprocessors."""

_TWO_BITS = "I2_S", "I2_S_ARM"


def stored_as(format_name: str, k_in: int = 0) -> str:
    """The format in which a GPU holds weights that a file holds in another.

    I2_S, I2_S_ARM and F16 stay as they are. The other ternary formats were made for a CPU's look-up tables or for fewer
    bytes: they are repacked without loss as I2_S, or where its blocks of 128 columns don't divide the matrix, as
    I2_S_ARM, whose blocks have 64. All else, and what neither can hold, is unpacked and rounded to F16. (IQ2_S has lost
    ternary weights before; that loss stays.)

    Args:
        format_name: The file's format.
        k_in: Columns of the matrix; 0: any that I2_S can hold.

    Raises:
        ValueError: No format has that name.
    """
    if format_name in _TWO_BITS:
        return format_name
    ternary = get_format(format_name).ternary
    return next((name for name in _TWO_BITS if ternary and k_in % get_format(name).block == 0), "F16")


def available_on_gpu(compute_capability: tuple[int, int] | None) -> tuple[Availability, ...]:
    """Every GPU kernel and format there are, kernels that are expected to be faster first.

    Args:
        compute_capability: The GPU's, major and minor; None if it isn't known.
    """
    path = None if compute_capability is None else "sm_{}{}".format(*compute_capability)
    found = []
    for kernel, formats in KERNEL_FORMATS.items():
        reason = _missing(kernel, compute_capability)
        for name in FORMATS:
            missing = reason
            if missing is None and name not in formats:
                missing = f"there is no {kernel} kernel for {name} on a GPU"
            found.append(Availability(kernel, name, None if missing else path, missing))
    return tuple(found)


def _missing(kernel: str, compute_capability: tuple[int, int] | None) -> str | None:
    """Why a kernel can't run here on a GPU of that compute capability, whatever the format; None if it can."""
    if find_spec("torch") is None:
        return "torch isn't installed (the extra gpu): pip install torch"
    if kernel != "triton":
        return None
    if find_spec("triton") is None:
        return "triton isn't installed: pip install triton"
    if compute_capability is None or compute_capability < TRITON_CAPABILITY:
        least = "{}.{}".format(*TRITON_CAPABILITY)
        got = "unknown" if compute_capability is None else "{}.{}".format(*compute_capability)
        return f"triton needs a GPU of compute capability {least}, this one's is {got}"
    return None
