"""Follow a layer's channels through reshapes and permutes.

A layout has per dimension a tuple of factors (size, stride), outermost first, whose sizes multiply to it. The stride
is the step in channels, None for other things (batch, tokens). A linear's [2, 5, 24] output, viewed as [2, 5, 3, 8],
is ((2, None),), ((5, None),), ((3, 8),), ((8, 1),). Factors of size 1 are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

Factor = tuple[int, "int | None"]
Dimension = tuple[Factor, ...]
Layout = tuple[Dimension, ...]


def channels_on(axis: int, shape: Sequence[int]) -> Layout:
    """The layout of a layer's input or output with channels on `axis`."""
    return tuple(_normalised([(n, 1)]) if i == axis else other(n) for i, n in enumerate(shape))


def other(size: int) -> Dimension:
    """A dimension without channels."""
    return _normalised([(size, None)])


def size_of(dimension: Dimension) -> int:
    return prod(size for size, _ in dimension)


def has_channels(dimension: Dimension) -> bool:
    return any(stride is not None for _, stride in dimension)


def extent(layout: Layout) -> int:
    """How many channels the tensor holds."""
    return prod(size for dimension in layout for size, stride in dimension if stride is not None)


def outermost_stride(layout: Layout, axis: int) -> int | None:
    """The stride of dimension `axis` if cutting it gives contiguous channels, else None."""
    if len(layout[axis]) != 1:
        return None
    size, stride = layout[axis][0]
    if stride is None or size * stride != extent(layout):
        return None
    return stride


def replace(layout: Layout, axis: int, dimension: Dimension) -> Layout:
    return (*layout[:axis], dimension, *layout[axis + 1 :])


def mixed(layout: Layout, axes: Sequence[int], shape: Sequence[int]) -> Layout | None:
    """The layout after positions on `axes` were mixed; None if channels were there."""
    if any(has_channels(layout[axis]) for axis in axes):
        return None
    return tuple(other(shape[i]) if i in axes else dimension for i, dimension in enumerate(layout))


def permute(layout: Layout, order: Sequence[int]) -> Layout:
    return tuple(layout[axis] for axis in order)


def reshape(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a row-major reshape; None where it does not fit."""
    rest = list(_normalised(factor for dimension in layout for factor in dimension))[::-1]
    result: list[Dimension] = []
    for wanted in shape:
        taken: list[Factor] = []
        while wanted != 1:
            if not rest or wanted < 1:
                return None
            size, stride = rest.pop()
            if wanted % size == 0:
                taken.append((size, stride))
                wanted //= size
            elif size % wanted == 0:
                inner = size // wanted
                taken.append((wanted, None if stride is None else stride * inner))
                rest.append((inner, stride))
                wanted = 1
            else:
                return None
        result.append(_normalised(taken))
    return None if rest else tuple(result)


def broadcast(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout of an elementwise result from that of an operand."""
    missing = len(shape) - len(layout)
    if missing < 0:
        return None
    result: list[Dimension] = [other(n) for n in shape[:missing]]
    for dimension, size in zip(layout, shape[missing:], strict=True):
        if size_of(dimension) not in (size, 1):
            return None
        result.append(dimension if size_of(dimension) == size else other(size))
    return tuple(result)


def operand(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout of an operand from that of an elementwise result; None where it lacks channels."""
    missing = len(layout) - len(shape)
    if missing < 0 or any(has_channels(dimension) for dimension in layout[:missing]):
        return None
    result: list[Dimension] = []
    for dimension, size in zip(layout[missing:], shape, strict=True):
        if has_channels(dimension) and size == 1:
            return None
        result.append(dimension if has_channels(dimension) else other(size))
    return tuple(result)


def _normalised(factors: Iterable[Factor]) -> Dimension:
    result: list[Factor] = []
    for size, stride in factors:
        if size == 1:
            continue
        if result:
            last_size, last_stride = result[-1]
            if last_stride == (None if stride is None else stride * size):
                result[-1] = (last_size * size, stride)
                continue
        result.append((size, stride))
    return tuple(result)
