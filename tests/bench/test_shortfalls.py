"""What a campaign fell short of, on synthetic measurements."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.bench.plan import Task
from autotune.bench.shortfalls import check_complete, shortfalls
from autotune.errors import BenchmarkError, BudgetError
from autotune.records import Failure, GpuClocks, GpuRun, Kernel, Layer, Measurement, Point, Site
from tests.builders import build_campaign, build_model

NEEDED = (
    Point("read", "cpu", "numpy", 1, k_in=64),
    Point("matmul", "cpu", "numpy", 1, 1, "I2_S", 256, 256),
)
TASKS = tuple(map(Task, NEEDED))
TIMED = tuple(Measurement(point, (1.0,), 1, "budget") for point in NEEDED)
CLOCKS = GpuClocks(1e9, 2e9, 3e9, (), 0.0)


def campaign(*outcomes, gpus=()):
    return build_campaign(outcomes=(*TIMED, *outcomes), gpus=gpus, kernels=())


def failed(device, kind, message, m=7):
    return Failure(Point("matmul", device, "torch", 1, m, "I2_S", 256, 256), kind, message)


def lines(*outcomes, gpus=(), model=None, used=("cpu", "cuda:0", "cuda:1")):
    return shortfalls(campaign(*outcomes, gpus=gpus), model or build_model(), used)


def test_with_all_timed_there_is_nothing_to_say():
    assert lines() == lines(gpus=(GpuRun(("cuda:0",), None, clocks=CLOCKS),)) == ()


class TestFailures:
    """Points that were not timed."""

    def test_they_are_counted_per_device_and_kind_with_the_first_reason(self):
        found = lines(
            failed("cpu", "hung", "nothing came"),
            failed("cuda:0", "hung", "no answer"),
            failed("cuda:0", "out_of_memory", "no room"),
            failed("cuda:0", "out_of_memory", "no room at all", m=8),
            gpus=(GpuRun(("cuda:0",), None),),
        )
        assert found == (
            "1 of 3 points were not timed (hung): nothing came",
            "1 of 3 points on cuda:0 were not timed (hung): no answer",
            "2 of 3 points on cuda:0 were not timed (out of memory): no room",
        )

    def test_of_a_gpu_that_failed_as_a_whole_its_own_line_is_enough(self):
        gpus = (GpuRun(("cuda:0", "cuda:1"), "the driver is too old"),)
        found = lines(failed("cuda:0", "budget", "the time was up"), gpus=gpus)
        assert found == ("no layer is put on cuda:0 and cuda:1: the driver is too old",)


class TestGpus:
    """What to mistrust of a GPU's times."""

    def test_work_for_others_is_told(self):
        found = lines(gpus=(GpuRun(("cuda:0",), None, clocks=replace(CLOCKS, busy_before=0.37)),))
        assert found == (
            "cuda:0 was at work for others just before it was timed (37% of the time): alone it would be faster",
        )

    @pytest.mark.parametrize("busy", [None, 0.0, 0.10])
    def test_a_little_work_or_none_that_is_known_of_is_not(self, busy):
        assert lines(gpus=(GpuRun(("cuda:0",), None, clocks=replace(CLOCKS, busy_before=busy)),)) == ()

    def test_clocks_that_were_held_back_are_told_with_the_reasons(self):
        reasons = ("applications_clocks_setting", "hw_thermal_slowdown", "sw_power_cap")
        found = lines(gpus=(GpuRun(("cuda:0",), None, clocks=replace(CLOCKS, throttle_reasons=reasons)),))
        assert found == ("the clocks of cuda:0 were held back while it was timed (hw_thermal_slowdown, sw_power_cap)",)

    def test_clocks_that_somebody_set_are_how_they_are(self):
        clocks = replace(CLOCKS, throttle_reasons=("applications_clocks_setting",))
        assert lines(gpus=(GpuRun(("cuda:0",), None, clocks=clocks),)) == ()

    def test_a_format_that_is_held_as_another_is_told(self):
        model = build_model(layers=(Layer((Site("up", 768, 256, "TL2"),)),))
        assert lines(gpus=(GpuRun(("cuda:0", "cuda:1"), None),), model=model) == (
            "on cuda:0 and cuda:1 TL2 weights are held as I2_S, for which there are kernels",
        )
        assert lines(gpus=(GpuRun(("cuda:0",), "no torch"),), model=model) == ("no layer is put on cuda:0: no torch",)
        assert lines(gpus=(GpuRun(("cuda:0",), None),), model=model, used=("cpu",)) == ()


class TestTorchAlone:
    """Where a GPU was timed with the slow twin only, its speeds are not what a runtime would have."""

    TORCH = Measurement(Point("matmul", "cuda:0", "torch", 1, 1, "I2_S", 256, 256), (1e-3,), 1, "stable")
    WHY = "on cuda:0 speeds are those of torch's operations, which unpack weights before they multiply, "

    def lines(self, *outcomes, **changes):
        found = build_campaign(
            outcomes=(*TIMED, self.TORCH, *outcomes), gpus=(GpuRun(("cuda:0",), None),), **{"kernels": (), **changes}
        )
        return [line for line in shortfalls(found, build_model(), ("cpu",)) if "torch's operations" in line]

    def test_the_reason_is_the_registrys(self):
        missing = Kernel("triton", "I2_S", None, "triton isn't installed: pip install triton", "gpu")
        assert self.lines(kernels=(missing,)) == [
            f"{self.WHY}Triton's can't run: triton isn't installed: pip install triton"
        ]

    def test_or_that_of_the_kernels_own_failure(self):
        point = replace(self.TORCH.point, kernel="triton")
        assert self.lines(Failure(point, "crashed", "RuntimeError: Failed to find C compiler")) == [
            f"{self.WHY}Triton's can't run: RuntimeError: Failed to find C compiler"
        ]

    def test_or_the_users_wish(self):
        assert self.lines(kernel="torch") == [f"{self.WHY}as --kernel asked for"]

    def test_it_is_not_said_where_tritons_was_timed(self):
        point = replace(self.TORCH.point, kernel="triton")
        assert self.lines(replace(self.TORCH, point=point)) == []


class TestComplete:
    """The CPU can always be decided about, else it is an error."""

    def test_a_gpu_makes_no_campaign_incomplete(self):
        check_complete(campaign(gpus=(GpuRun(("cuda:0",), "no torch"),)), TASKS)

    def test_a_gpus_points_do_not_stand_for_the_cpus(self):
        on_gpu = tuple(replace(timed, point=replace(timed.point, device="cuda:0")) for timed in TIMED)
        with pytest.raises(BudgetError, match="it ended before read was timed"):
            check_complete(build_campaign(outcomes=on_gpu), TASKS)

    def test_the_reason_is_that_of_the_cpus_own_failure(self):
        outcomes = (TIMED[0], failed("cuda:0", "crashed", "no luck", m=1), failed("cpu", "hung", "nothing came", m=1))
        with pytest.raises(BenchmarkError, match=r"^matmul I2_S 256 x 256 could not be timed, .*: nothing came$"):
            check_complete(build_campaign(outcomes=outcomes), TASKS)
