"""A precision: number formats of weights and inputs, where fields in a file do not say it."""

from segquant import QuantScheme, QuantSpec


def int4_in_groups(size: int) -> QuantScheme:
    """Weights int4 in groups of `size`, inputs int8 per token."""
    return QuantScheme(QuantSpec("int4", "group", size), QuantSpec("int8", "token", dynamic=True))
