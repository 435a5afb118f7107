"""What runs an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Engine(Protocol):
    """An exported file, ready to run.

    Attributes:
        remark: what a user should know of how it runs, else empty.
    """

    name: ClassVar[str]
    remark: str

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the file's order; `feeds` by the file's names."""
        ...

    def products(self) -> dict[str, int]:
        """How many matrix products and convolutions run in which arithmetic: a count by words such as "int8"."""
        ...
