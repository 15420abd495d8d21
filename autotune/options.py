"""What a user may ask for. Light: the cached answer's path runs through here."""

from __future__ import annotations

from typing import NamedTuple

from autotune.errors import BudgetError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_BUDGET_S = 16.0
"""For timing kernels; on a quiet host a third of it is enough."""
QUICK_BUDGET_S = 7.5
GPU_BUDGET_S = 20.0
"""What a GPU adds to the default budget: starting torch on it and compiling its kernels take most of that."""
RUN_BUDGET_S = 20.0
"""For running configurations, after the benchmark."""
RECORD_BUDGET_S = 24.0
"""For timing all that could be asked for, to record a host; a GPU adds to it as well."""

RECORDED_MODEL = "bitnet-b1.58-2B-4T"
"""The model that a host is recorded with unless a user names others."""
AUTO = "auto"
"""The weight format's name that has the tuner choose one."""

_MIN_BUDGET_S = 0.5
_MAX_BUDGET_S = 3600.0


class Options(NamedTuple):
    """Workload, limits, format and kernel; the same options on the same host give the saved answer.

    Attributes:
        workload: ``chat``, ``server`` or ``offline``.
        format: Weight format, to say or override the model's own; ``auto`` has the tuner choose one.
        prompt: Prompt tokens per request.
        output: Output tokens per request.
        context: KV-cache slots per sequence, in tokens.
        max_batch: Largest batch size.
        max_tpot_ms: Longest time per output token, milliseconds.
        max_ttft_ms: Longest time to the first token, milliseconds.
        kernel: The kernel to time; None: the fastest of those that can run.
        confirm: Whether the best predicted configurations are run, to choose by that.
    """

    workload: str = "server"
    format: str | None = None
    prompt: int | None = None
    output: int | None = None
    context: int | None = None
    max_batch: int | None = None
    max_tpot_ms: float | None = None
    max_ttft_ms: float | None = None
    kernel: str | None = None
    confirm: bool = True

    def request(self, budget_s: float) -> dict[str, object]:
        """As it is saved beside a result."""
        return {**self._asdict(), "budget_s": budget_s}

    def answered_by(self, request: dict[str, object], budget_s: float) -> bool:
        """Whether a result saved for ``request`` answers these options.

        It does for the same wish with at least that budget, and where it was confirmed or need not be.
        """
        spent = request.get("budget_s")
        enough = isinstance(spent, int | float) and spent >= budget_s
        confirmed = request.get("confirm") is True or not self.confirm
        same = {**request, "budget_s": budget_s, "confirm": self.confirm} == self.request(budget_s)
        return enough and confirmed and same


class Budget(NamedTuple):
    """Wall time for measuring, in seconds.

    Attributes:
        benchmark_s: For timing kernels.
        runs_s: For running configurations; 0 where none is run.
    """

    benchmark_s: float
    runs_s: float

    @property
    def total_s(self) -> float:
        """Of both."""
        return self.benchmark_s + self.runs_s


def split_budget(budget_s: float | None, *, quick: bool = False, confirm: bool = True, gpu: bool = False) -> Budget:
    """What the user said, shared out, or the defaults.

    Args:
        budget_s: For all of it; None: the defaults.
        quick: Whether fewer points are to be timed.
        confirm: Whether configurations are to be run.
        gpu: Whether there is a GPU, which takes longer.

    Raises:
        UsageError: It is no duration, or longer than an hour.
        BudgetError: Nothing could be measured in it.
    """
    usual = Budget(QUICK_BUDGET_S if quick else DEFAULT_BUDGET_S, RUN_BUDGET_S if confirm else 0.0)
    if budget_s is None:
        return usual._replace(benchmark_s=usual.benchmark_s + GPU_BUDGET_S) if gpu else usual
    if not 0 < budget_s <= _MAX_BUDGET_S:
        raise UsageError(f"--budget must be more than 0 and at most {_MAX_BUDGET_S:.0f} seconds, got {budget_s:g}")
    share = budget_s / usual.total_s
    budget = Budget(share * usual.benchmark_s, share * usual.runs_s)
    if budget.benchmark_s < _MIN_BUDGET_S:
        raise BudgetError(
            f"a budget of {budget_s:g} s is too small: starting the benchmark alone takes about {_MIN_BUDGET_S:g} s"
        )
    return budget


def counted_budget_s(benchmark_s: float, *, quick: bool) -> float:
    """The seconds that a benchmark counts as: no budget makes up for the points that a quick one leaves out."""
    return min(benchmark_s, QUICK_BUDGET_S) if quick else benchmark_s


def tune_command(model: str, workload: str, weight_format: str | None, kernel: str | None = None) -> str:
    """The command that makes the result for a model, to be pasted into a shell."""
    return _command([model], {"workload": workload, "format": weight_format, "kernel": kernel})


def asking_command(verb: str, model: str, request: Mapping[str, object]) -> str:
    """A command that asks as a request did (``retune``, ``verify``), to be pasted into a shell."""
    return _command([verb, model], {name: request.get(name) for name in Options._fields if name != "confirm"})


def naming_command(verb: str, model: str, request: Mapping[str, object]) -> str:
    """A command about what is saved for a request (``explain``, ``confirm``), to be pasted into a shell."""
    return _command([verb, model], {name: request.get(name) for name in ("workload", "format")})


def remeasure_command(model: str, request: Mapping[str, object]) -> str:
    """The command that measures anew for a model and a request, whatever is saved, to be pasted into a shell."""
    return f"{asking_command('tune', model, request)} --force"


def _command(words: list[str], options: Mapping[str, object]) -> str:
    import shlex

    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items() if value is not None)
    return shlex.join(["python", "-m", "autotune", *words, *(word for pair in given for word in pair)])
