"""Typed look-ups in a model file's metadata; what is wrong becomes one sentence with file, key, expected and found."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.errors import ModelError
from autotune.records.model import ActivationFunction

MAX_LAYERS = 1000
MAX_DIMENSION = 2**20
MAX_VOCABULARY = 2**24
MAX_CONTEXT = 2**30
"""Bounds far beyond any model there is: what lies outside is a damaged file, and would only exhaust memory later."""


_ACTIVATIONS: dict[str, ActivationFunction] = {
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_fast": "gelu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
"""Names of activation functions in models, and what each computes."""


class Keys:
    """Key-value metadata of one file. A null counts as absent, as it does for transformers.

    Attributes:
        path: The file, for messages.
    """

    def __init__(self, path: str, values: Mapping[str, object]) -> None:
        self.path = path
        self._values = values

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is there with a null."""
        return key in self._values and self._values[key] is None

    def integer(self, key: str, maximum: int, default: int | None = None) -> int:
        """A whole number from 1 to ``maximum``.

        Raises:
            ModelError: The key is absent without a default, or its value is something else.
        """
        if default is not None and not self.has(key):
            return default
        value = self._values.get(key)
        # bool is an int to Python, not to a model file
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise self.error(key, f"a whole number from 1 to {maximum:,}")
        return value

    def count(self, key: str) -> int:
        """A whole number from 0 on.

        Raises:
            ModelError: The key is absent, or its value is something else.
        """
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.error(key, "a whole number from 0 on")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            ModelError: It is something else.
        """
        value = self._values.get(key) if self.has(key) else default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string.

        Raises:
            ModelError: The key is absent without a default, or its value is something else.
        """
        value = self._values.get(key) if self.has(key) else default
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def activation(self, key: str, default: str) -> ActivationFunction:
        """An activation function by one of the names it has in models.

        Raises:
            ModelError: It is something else.
        """
        name = self.text(key, default)
        if name not in _ACTIVATIONS:
            raise self.error(key, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if the key is absent.

        Raises:
            ModelError: It is something else.
        """
        value = self._values.get(key) if self.has(key) else []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of strings")
        return tuple(value)

    def section(self, key: str) -> Keys:
        """The object under a key; its own keys are named ``key.name`` in messages, and here.

        Raises:
            ModelError: It is something else.
        """
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Keys(self.path, {f"{key}.{name}": item for name, item in value.items()})

    def error(self, key: str, expected: str) -> ModelError:
        """What to raise when the value of ``key`` is not what was expected."""
        found = shown(self._values[key]) if key in self._values else "nothing"
        return ModelError(f"{self.path}: {key}: expected {expected}, got {found}")


def shown(value: object) -> str:
    """A value as a message shows it: in JSON's words, and short."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of length {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:  # Python refuses to print really long ones
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:60]}...")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
