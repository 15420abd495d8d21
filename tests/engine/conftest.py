"""Teams of threads that tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ternary_kernels.team import Team


@pytest.fixture(scope="module")
def teams() -> Iterator[Callable[[int], Team]]:
    """Gives the team of a number of threads, which lives until the module's tests are done."""
    made: dict[int, Team] = {}
    with ExitStack() as stack:

        def team(threads: int) -> Team:
            if threads not in made:
                made[threads] = stack.enter_context(Team(threads))
            return made[threads]

        yield team
