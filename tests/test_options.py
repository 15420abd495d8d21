from __future__ import annotations

import json
import shlex

import pytest

from autotune import options
from autotune.errors import BudgetError, UsageError
from autotune.options import DEFAULT_BUDGET_S, GPU_BUDGET_S, QUICK_BUDGET_S, RUN_BUDGET_S, Options

SERVER = Options(prompt=128, max_tpot_ms=50)


def saved(wish: Options, budget_s: float) -> dict[str, object]:
    """A request as it comes back from the cache."""
    request: dict[str, object] = json.loads(json.dumps(wish.request(budget_s)))
    return request


# What answers what


def test_a_result_answers_the_wish_it_was_made_for() -> None:
    """Also after its trip through JSON, where 50 milliseconds may have become 50.0."""
    assert SERVER.answered_by(saved(SERVER, 20.0), 20.0)
    assert SERVER.answered_by(saved(SERVER._replace(max_tpot_ms=50.0), 20.0), 20.0)


def test_a_longer_budget_answers_a_shorter_one_but_not_the_other_way_round() -> None:
    """Who allows more time wants better measurements than those there are."""
    assert SERVER.answered_by(saved(SERVER, 20.0), 6.0)
    assert not SERVER.answered_by(saved(SERVER, 6.0), 20.0)


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "chat"},
        {"format": "F16"},
        {"prompt": 129},
        {"prompt": None},
        {"output": 1},
        {"context": 4096},
        {"max_batch": 8},
        {"max_tpot_ms": 50.5},
        {"max_tpot_ms": None},
        {"max_ttft_ms": 100.0},
        {"kernel": "numpy"},
    ],
    ids=str,
)
def test_a_result_answers_no_other_wish(change: dict[str, object]) -> None:
    """Whatever option differs, left out or given."""
    assert not SERVER._replace(**change).answered_by(saved(SERVER, 20.0), 20.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_", [{}, {"budget_s": 20.0}, {"budget_s": None}, {"budget_s": "20"}], ids=str)
def test_a_request_of_another_shape_answers_nothing(request_: dict[str, object]) -> None:
    """As another version may have saved it: it is measured again, and nothing breaks."""
    assert not Options().answered_by(request_, 1.0)


def test_a_request_with_more_in_it_answers_nothing() -> None:
    """What a later version adds may change the answer."""
    assert not SERVER.answered_by({**saved(SERVER, 20.0), "kv_dtype": "q8_0"}, 20.0)


def test_a_quick_benchmark_never_counts_as_a_full_one() -> None:
    """However much time it was given: it leaves points out."""
    assert options.counted_budget_s(60.0, quick=True) == QUICK_BUDGET_S
    assert options.counted_budget_s(2.0, quick=True) == 2.0
    assert options.counted_budget_s(60.0, quick=False) == 60.0
    assert not SERVER.answered_by(saved(SERVER, options.counted_budget_s(60.0, quick=True)), DEFAULT_BUDGET_S)


def test_only_what_was_run_answers_who_wants_it_run() -> None:
    """Who is content with predictions takes either."""
    predicted = SERVER._replace(confirm=False)
    assert not SERVER.answered_by(saved(predicted, 20.0), 20.0)
    assert predicted.answered_by(saved(SERVER, 20.0), 20.0)
    assert predicted.answered_by(saved(predicted, 20.0), 20.0)


# Budgets


def test_the_budget_is_what_the_user_said_or_a_default() -> None:
    """A shorter one with --quick, and a longer one where there is a GPU; a given one overrides both."""
    assert options.split_budget(None) == (DEFAULT_BUDGET_S, RUN_BUDGET_S)
    assert options.split_budget(None, confirm=False) == (DEFAULT_BUDGET_S, 0)
    assert options.split_budget(None, gpu=True) == (DEFAULT_BUDGET_S + GPU_BUDGET_S, RUN_BUDGET_S)
    assert options.split_budget(None, quick=True, confirm=False) == (QUICK_BUDGET_S, 0)
    assert QUICK_BUDGET_S < DEFAULT_BUDGET_S
    for quick in (False, True):
        assert options.split_budget(3.5, quick=quick, confirm=False) == (3.5, 0)
    assert options.split_budget(3600, confirm=False, gpu=True).total_s == 3600


def test_a_given_budget_is_shared_out_as_the_defaults_are() -> None:
    """For kernels and for runs; with both at their defaults nothing changes."""
    total_s = DEFAULT_BUDGET_S + RUN_BUDGET_S
    assert options.split_budget(total_s) == pytest.approx((DEFAULT_BUDGET_S, RUN_BUDGET_S))
    half = options.split_budget(total_s / 2)
    assert half == pytest.approx((DEFAULT_BUDGET_S / 2, RUN_BUDGET_S / 2))
    assert half.total_s == pytest.approx(total_s / 2)


@pytest.mark.parametrize("budget_s", [0.0, -1.0, -0.0, 3600.1, float("inf"), float("-inf"), float("nan")])
def test_a_budget_that_is_no_duration_is_refused(budget_s: float) -> None:
    """The sentence names the option, what is expected and what was given."""
    with pytest.raises(UsageError, match=r"^--budget must be more than 0 and at most 3600 seconds, got ") as caught:
        options.split_budget(budget_s)
    assert str(caught.value).endswith(f"{budget_s:g}")


def test_a_budget_in_which_nothing_can_be_measured_is_refused() -> None:
    """Before anything is started."""
    with pytest.raises(BudgetError, match=r"0\.1 s is too small"):
        options.split_budget(0.1, confirm=False)


# Commands


def test_the_command_that_is_suggested_can_be_pasted_into_a_shell() -> None:
    """Whatever characters a file's name has."""
    command = options.tune_command("my model's config.json", "chat", "I2_S")
    assert shlex.split(command) == [
        *("python", "-m", "autotune", "my model's config.json"),
        *("--workload", "chat", "--format", "I2_S"),
    ]
    assert options.tune_command("model.json", "chat", None, "amx").endswith("--workload chat --kernel amx")
    assert options.tune_command("model.json", "server", None) == "python -m autotune model.json --workload server"
