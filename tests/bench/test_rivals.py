"""Which kernels compete, when one has lost, and what that spares."""

from __future__ import annotations

import pytest

from autotune.bench.rivals import Kernels, choose_kernels, gates, is_beaten, rivals
from autotune.errors import KernelUnavailableError, UsageError
from autotune.records import Kernel, Point

NO_AMX = "this CPU has no amx_int8"
HERE = (
    Kernel("native", "I2_S", "avx512_vnni", None),
    Kernel("native", "F16", "avx512", None),
    Kernel("amx", "I2_S", "amx_int8", None),
    Kernel("numpy", "I2_S", None, None),
    Kernel("numpy", "F16", None, None),
    Kernel("numpy", "F32", None, None),
)
WITHOUT_AMX = (*HERE[:2], Kernel("amx", "I2_S", None, NO_AMX), *HERE[3:])


def point(kernel, m=1, threads=2, n_out=256):
    return Point("matmul", "cpu", kernel, threads, m, "I2_S", n_out, 256)


class TestChoice:
    """Of kernels, from what the registry says."""

    def test_all_that_can_run_are_rivals_and_tiles_begin_where_they_are_full(self):
        kernels = choose_kernels(HERE, ["I2_S", "F16", "F32"], None)
        assert kernels.at("I2_S", 1) == kernels.at("I2_S", 15) == ("native", "numpy")
        assert kernels.at("I2_S", 16) == kernels.at("I2_S", 512) == ("native", "amx", "numpy")
        assert kernels.at("F16", 64) == ("native", "numpy")
        assert kernels.at("F32", 64) == ("numpy",)
        assert kernels.main == "native"

    def test_what_cannot_run_is_no_rival(self):
        kernels = choose_kernels(WITHOUT_AMX, ["I2_S"], None)
        assert kernels.at("I2_S", 64) == ("native", "numpy")

    @pytest.mark.parametrize(
        ("forced", "at_1", "at_64", "f16", "main"),
        [
            ("numpy", ("numpy",), ("numpy",), ("numpy",), "numpy"),
            ("native", ("native",), ("native",), ("native",), "native"),
            ("amx", ("native",), ("amx",), ("native",), "native"),
        ],
    )
    def test_a_forced_kernel_is_alone_where_it_can_run_and_the_next_best_elsewhere(
        self, forced, at_1, at_64, f16, main
    ):
        kernels = choose_kernels(HERE, ["I2_S", "F16"], forced)
        assert (kernels.at("I2_S", 1), kernels.at("I2_S", 64), kernels.at("F16", 64)) == (at_1, at_64, f16)
        assert kernels.main == main

    def test_an_unknown_kernel_is_told_with_those_there_are(self):
        with pytest.raises(UsageError, match=r"^--kernel must be one of native, amx, numpy, got 'abacus'$"):
            choose_kernels(HERE, ["I2_S"], "abacus")

    @pytest.mark.parametrize(
        ("found", "formats", "reason"),
        [(WITHOUT_AMX, ["I2_S", "F16"], NO_AMX), (HERE, ["F16", "F32"], "it has none for F16 or F32")],
    )
    def test_a_forced_kernel_that_cannot_run_is_told_with_the_reason(self, found, formats, reason):
        with pytest.raises(KernelUnavailableError, match=f"^the kernel 'amx' can't run this here: {reason}$"):
            choose_kernels(found, formats, "amx")

    @pytest.mark.parametrize(
        ("weight_format", "reason"), [("TL1", "native: this CPU has no neon_dot"), ("TQ1_0", "there is none")]
    )
    def test_a_format_that_no_kernel_can_run_is_told(self, weight_format, reason):
        found = (*HERE, Kernel("native", "TL1", None, "this CPU has no neon_dot"))
        with pytest.raises(KernelUnavailableError, match=f"^no kernel can run .* {weight_format} here: {reason}$"):
            choose_kernels(found, ["I2_S", weight_format], None)

    def test_where_tiles_are_all_there_is_they_are_timed_on_one_token_too(self):
        assert Kernels({"I2_S": ("amx",)}).at("I2_S", 1) == ("amx",)


class TestGpuKernels:
    """Which kernels are left to choose from on GPUs beside those of the CPU."""

    ON_GPU = (
        *(Kernel("triton", name, "sm_90", None, "gpu") for name in ("I2_S", "F16")),
        Kernel("triton", "TL2", None, "there is no triton kernel for TL2 on a GPU", "gpu"),
        *(Kernel("torch", name, "sm_90", None, "gpu") for name in ("I2_S", "F16", "TL2")),
    )

    def test_the_cpus_choice_is_its_own(self):
        alone, beside = (choose_kernels(found, ["I2_S", "F16"], None) for found in (HERE, (*HERE, *self.ON_GPU)))
        assert (beside.by_format, beside.main, beside.tiles) == (alone.by_format, alone.main, alone.tiles)
        assert (alone.on_gpu, beside.on_gpu) == ((), self.ON_GPU)

    def test_a_gpu_kernel_that_is_asked_for_is_alone_on_gpus_and_changes_nothing_on_the_cpu(self):
        found = (*HERE, *self.ON_GPU)
        kernels = choose_kernels(found, ["I2_S", "F16"], "triton")
        assert kernels.on_gpu == self.ON_GPU[:3]
        assert kernels.at("I2_S", 64) == choose_kernels(HERE, ["I2_S", "F16"], None).at("I2_S", 64)

    def test_a_gpu_kernel_that_cannot_run_is_told_with_the_reason(self):
        unable = tuple(Kernel("triton", name, None, "triton isn't installed", "gpu") for name in ("I2_S", "F16"))
        with pytest.raises(
            KernelUnavailableError, match=r"^the kernel 'triton' can't run this here: triton isn't installed$"
        ):
            choose_kernels((*HERE, *unable), ["I2_S"], "triton")

    def test_where_there_is_no_gpu_its_kernels_are_unknown(self):
        with pytest.raises(UsageError, match=r"^--kernel must be one of native, amx, numpy, got 'triton'$"):
            choose_kernels(HERE, ["I2_S"], "triton")

    def test_a_format_that_only_a_gpu_has_a_kernel_for_is_told(self):
        """Every strategy may need the CPU."""
        with pytest.raises(
            KernelUnavailableError, match=r"^no kernel can run the weight format TL2 here: there is none$"
        ):
            choose_kernels((*HERE, *self.ON_GPU), ["TL2"], None)


def test_rivals_differ_in_the_kernel_alone():
    points = [point("native"), point("numpy"), point("native", m=2), point("numpy", threads=1)]
    assert rivals(points) == [(1,), (0,), (), ()]


def test_the_reference_is_compared_at_two_points_on_the_most_threads_and_these_spare_the_rest():
    points = [
        point(kernel, m, threads) for kernel in ("native", "numpy") for m in (1, 16, 48, 512) for threads in (1, 2)
    ]
    numpy = {(points[index].m, points[index].threads): index for index in range(8, 16)}
    first = (numpy[1, 2], numpy[48, 2])
    assert gates(points) == [() if index < 8 or index in first else first for index in range(16)]


def test_one_product_stands_for_all_of_its_format():
    """The largest; and a point that no other kernel can do isn't spared by any."""
    sizes = [point(kernel, m, n_out=n_out) for n_out in (256, 512) for m in (1, 64) for kernel in ("native", "numpy")]
    alone = point("numpy", n_out=1024)
    assert gates([*sizes, alone]) == [(), (5, 7), (), (5, 7), (), (), (), (), ()]


def test_without_another_kernel_the_reference_waits_for_nothing():
    points = [point("numpy", m) for m in (1, 64)] + [point("native", n_out=512)]
    assert gates(points) == [(), (), ()]


@pytest.mark.parametrize(
    ("samples_s", "others_s", "beaten"),
    [
        ([1.6, 1.7], [[1.0]], True),
        ([1.4, 9.0], [[1.0]], False),
        ([2.9], [[1.0]], False),
        ([3.1], [[1.0]], True),
        ([1.6, 1.7], [[2.0], [1.0, 1.9]], True),
        ([1.6, 1.7], [[], [1.2]], False),
        ([5.0, 5.0], [[]], False),
        ([5.0, 5.0], [], False),
        ([], [[1.0]], False),
    ],
)
def test_beaten_is_who_is_clearly_slower_at_best(samples_s, others_s, beaten):
    """One sample must show more than two do."""
    assert is_beaten(samples_s, others_s) is beaten
