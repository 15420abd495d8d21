"""A GPU's kernels are checked in the shapes in which they are timed. torch's CPU device stands in."""

from __future__ import annotations

import threading

import pytest
from msgspec.structs import replace

from autotune.bench.messages import Failed, Started

torch = pytest.importorskip("torch")

from autotune.bench import gpu_numerics  # noqa: E402
from autotune.bench.gpu_numerics import GpuChecker  # noqa: E402
from autotune.bench.numerics import failure_of  # noqa: E402
from ternary_kernels.cuda.product import PRODUCTS  # noqa: E402
from ternary_kernels.cuda.torch_products import TorchHalf, TorchTernary  # noqa: E402


@pytest.fixture
def check():
    """Checks tasks; returns those that failed and the events."""

    def check(*tasks, skip=()):
        events = []
        failed = GpuChecker(torch.device("cpu"), 2, failure_of, events.append).check(tasks, skip)
        return failed, events

    return check


@pytest.fixture
def define(monkeypatch):
    """Makes a kernel of torch's that does something to its output afterwards, or when it is compiled."""

    def define(name, spoil=lambda out: None, compiles=lambda product: None, base=TorchTernary):
        class Spoilt(base):
            kernel = name
            formats = ()  # registers nothing

            def compile(self):
                compiles(self)

            def _multiply(self, x, weights, out):
                super()._multiply(x, weights, out)
                spoil(out)

        Spoilt.formats = base.formats
        monkeypatch.setitem(PRODUCTS, (name, "F16" if base is TorchHalf else "I2_S"), Spoilt)

    return define


def test_every_row_and_token_of_a_shape_is_checked(check, define, gpu_product):
    """A kernel may be wrong only where a shape is large: other tiles are chosen for it."""

    def spoil(out):
        if out.shape == (300, 500):
            out[299, 499] += 1

    define("odd", spoil)
    tasks = [gpu_product("odd", n_out=n_out, m=m) for n_out, m in ((500, 299), (499, 300), (500, 300))]
    failed, events = check(*tasks)
    assert failed == {2}
    assert [event.kind for event in events if isinstance(event, Failed)] == ["wrong_result"]


def test_what_is_not_written_is_wrong(check, define, gpu_product):
    define("lazy", lambda out: out[-1].fill_(torch.nan))
    assert check(gpu_product("lazy", m=140))[0] == {0}


@pytest.mark.parametrize(("error", "failed"), [(1e-4, set()), (0.1, {0})])
def test_floating_point_results_may_round(check, define, gpu_product, error, failed):
    define("rounding", lambda out: out.mul_(1 + error), base=TorchHalf)
    task = gpu_product("rounding", m=3)
    half = replace(task, point=replace(task.point, format="F16"))
    assert check(half)[0] == failed


def test_shapes_of_very_many_rows_are_checked_in_fewer(check, define, gpu_product, monkeypatch):
    monkeypatch.setattr(gpu_numerics, "_MOST_ROWS", 300)
    rows = []
    define("counted", lambda out: rows.append(out.shape[1]))
    assert check(gpu_product("counted", n_out=1 << 30))[0] == set()
    assert set(rows) == {300}


class TestCompiling:
    """Ahead of the checks, several kernels at a time."""

    def test_each_shape_once_and_the_reference_not_at_all(self, check, define, gpu_product):
        compiled, caller = [], threading.get_ident()
        define("made", compiles=lambda product: compiled.append((product.n_out, product.m, threading.get_ident())))
        tasks = [gpu_product(), gpu_product("made"), gpu_product("made", m=9), gpu_product("made", m=5)]
        failed, events = check(tasks[0], tasks[1], tasks[1], *tasks[2:], skip=(3,))
        assert failed == set()
        assert sorted(m for _, m, _ in compiled) == [1, 5]
        assert caller not in {thread for *_, thread in compiled}
        announced = Started((1, 2, 4), None, compiles=True)
        assert events[:3] == [announced] * 3

    def test_what_it_raises_is_left_to_the_check(self, check, define, gpu_product):
        def fail(product):
            raise RuntimeError("no compiler")

        define("unmade", compiles=fail)
        assert check(gpu_product("unmade"))[0] == set(), "it was compiled by its first call"
