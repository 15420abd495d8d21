"""Copying and multiplying at full speed: what they compute is checked, how fast they are is the bench's."""

import pytest
import torch

from ternary_kernels.cuda.ceilings import INT8_CAPABILITY, Peak, copy


def test_all_bytes_are_copied(device):
    source = torch.arange(1000, device=device).to(torch.uint8)
    target = torch.zeros_like(source)
    copy(source, target)
    assert torch.equal(source, target)
    copy(source[:0], target[:0])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            torch.zeros(4, dtype=torch.int8),
            torch.zeros(4, dtype=torch.uint8),
            "copy source: .*got torch.int8 of rank 1",
        ),
        (torch.zeros(4, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8), "copy target: .*of rank 2"),
        (
            torch.zeros(8, dtype=torch.uint8)[::2],
            torch.zeros(4, dtype=torch.uint8),
            "copy source: .*got non-contiguous",
        ),
        (torch.zeros(4, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8), "as many bytes .*got 4 on cpu and 5 on"),
        (
            torch.zeros(4, dtype=torch.uint8),
            torch.zeros(4, dtype=torch.uint8, device="meta"),
            "on one device, got 4 on cpu and 4 on meta",
        ),
    ],
)
def test_what_cannot_be_copied_is_refused(source, target, message):
    with pytest.raises(ValueError, match=message):
        copy(source, target)


@pytest.mark.parametrize("arithmetic", ["int8", "float16"])
def test_the_peak_multiplies_what_it_says(device, arithmetic):
    """A multiplication and an addition are two operations; operands vary, as a constant one would be too easy."""
    peak = Peak(device, (32, 64, 128), arithmetic)
    assert peak.operations == 2 * 32 * 64 * 128
    assert peak.arithmetic == arithmetic
    assert peak.left.unique().numel() > 100
    peak()
    exact = peak.left.cpu().double() @ peak.right.cpu().double().T
    if arithmetic == "int8":
        assert peak.product.dtype == torch.int32
        assert torch.equal(peak.product.cpu().double(), exact)
    else:
        torch.testing.assert_close(peak.product.cpu().double(), exact, rtol=2e-3, atol=0.1)


def test_a_device_with_integer_tensor_cores_uses_them(device):
    assert Peak("cpu", (1, 1, 1)).arithmetic == "int8"
    if device == "cuda" and torch.cuda.get_device_capability() >= INT8_CAPABILITY:
        assert Peak(device, (32, 8, 8)).arithmetic == "int8"


def test_a_gpu_without_them_multiplies_halves(monkeypatch):
    """Volta's tensor cores know float16 only; the tensors stay on the host, as there is no such GPU here."""
    made = {}

    def without_device(maker):
        return lambda *size, device, **kwargs: made.setdefault(maker.__name__, device) and maker(*size, **kwargs)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    for maker in (torch.randn, torch.zeros):
        monkeypatch.setattr(torch, maker.__name__, without_device(maker))
    assert Peak("cuda", (2, 3, 4)).arithmetic == "float16"
    assert made == {"randn": "cuda", "zeros": "cuda"}


@pytest.mark.parametrize("size", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="peak: expected a positive m, n_out and k_in"):
        Peak("cpu", size)


def test_another_arithmetic_is_refused():
    with pytest.raises(ValueError, match="peak: expected int8 or float16, got 'float64'"):
        Peak("cpu", (1, 1, 1), "float64")
