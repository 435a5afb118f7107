"""What runs an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from segquant.errors import first_line

Array = np.ndarray[Any, Any]


class Engine(Protocol):
    """An exported file, ready to run.

    Attributes:
        remark: what a user should know of how it runs, else empty.
    """

    name: ClassVar[str]
    remark: str

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the file's order; `feeds` by the file's names. Raises whatever the engine does."""
        ...

    def products(self) -> dict[str, int]:
        """How many matrix products and convolutions run in which arithmetic: a count by words such as "int8"."""
        ...


def cause(error: Exception) -> str:
    """An engine's sentence, without the lines that say where in it it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return plain[0] if plain else first_line(error)
