"""What the guides show as Python is run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ternary_kernels import oracle

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_of_a_product_equals_the_oracle_as_it_says() -> None:
    """docs/kernels.md."""
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "kernels.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    found, expected = names["out"], oracle.matmul(names["x"], names["weights"], 0.5)
    assert np.array_equal(found, expected)
