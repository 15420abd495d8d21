"""For the engine's process to import: puts the stand-in in the real model's place."""

from __future__ import annotations

import resource

from autotune.engine import transformer
from tests.engine import standin

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
transformer.Transformer = standin.Transformer  # type: ignore[assignment, misc]
