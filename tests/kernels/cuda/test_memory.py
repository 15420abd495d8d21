"""What says that a device's memory is used up."""

import pytest
import torch

from ternary_kernels.cuda.memory import is_out_of_memory


def test_too_large_a_tensor_is_out_of_memory(device):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_libraries_say_it_in_their_own_words(words):
    assert is_out_of_memory(RuntimeError(words))


def test_what_fails_because_memory_was_used_up_before_counts():
    """A graph whose recording was broken off can't be ended either."""
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert is_out_of_memory(error)


def test_other_errors_do_not_count():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
