"""What ATen operators do to dimensions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import Node


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The value goes through unchanged (up to dtype, memory or training-time noise).
IDENTITY = _words(
    "to _to_copy type_as contiguous clone alias detach lift_fresh lift_fresh_copy dropout alpha_dropout "
    "feature_dropout _autocast_to_reduced_precision _autocast_to_full_precision"
)
# One tensor in, one out, element by element.
UNARY = _words(
    "silu gelu mish hardswish relu relu6 leaky_relu elu selu celu softplus tanh sigmoid hardsigmoid hardtanh "
    "clamp clamp_min clamp_max clip nan_to_num neg abs exp log sqrt rsqrt reciprocal square pow erf"
)
SUM = _words("add sub subtract rsub")
PRODUCT = _words("mul multiply div divide true_divide")
BINARY = SUM | PRODUCT
# Tokens, or groups of channels, are centred and scaled; a channel keeps its place.
NORM = _words("layer_norm rms_norm _fused_rms_norm group_norm batch_norm instance_norm")
# The layers that segments are found for.
LAYER = _words("linear conv2d")
# Positions of the last one, two or three dimensions are mixed; the indices of the others stay apart.
_SPATIAL = _words(
    "upsample_nearest _upsample_nearest_exact upsample_linear upsample_bilinear upsample_bicubic "
    "upsample_trilinear avg_pool max_pool adaptive_avg_pool adaptive_max_pool"
)
_PAD = _words(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d"
)
_CONV = _words("conv1d conv2d conv3d")
# Row-major: the input's and the output's shape say it all.
RESHAPE = _words("view _unsafe_view reshape view_as reshape_as flatten unflatten unsqueeze squeeze atleast_3d")
PERMUTE = _words("permute transpose t swapaxes swapdims movedim moveaxis mT numpy_T adjoint")
EXPAND = _words("expand expand_as broadcast_to")
SPLIT = _words(
    "chunk unsafe_chunk split unsafe_split split_with_sizes unsafe_split_with_sizes tensor_split hsplit "
    "vsplit dsplit unbind"
)
WINDOW = _words("slice narrow select")
CAT = _words("cat concat concatenate hstack")
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


@dataclass(frozen=True)
class Window:
    """Indices start, start + step, … below stop of an axis; `keeps`: it stays."""

    axis: int
    start: int
    stop: int
    step: int = 1
    keeps: bool = True


def name(node: Node) -> str:
    """Without namespace, overload and in-place underscore; "" if none."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1].removesuffix("_")
    return str(getattr(node.target, "_name", ""))


def argument(node: Node, position: int, key: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(key, default)


def shape(node: Any) -> tuple[int, ...] | None:
    """The non-empty shape of a node's tensor, else None; a size that depends on values becomes a large prime."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    sizes = tuple(_size(n) for n in value.shape)
    return sizes if all(n > 0 for n in sizes) else None


def _number(value: Any) -> int | None:
    value = value.meta.get("val") if isinstance(value, Node) else value
    return _size(value) if isinstance(value, (int, torch.SymInt)) else None


def _size(value: int | torch.SymInt) -> int:
    if isinstance(value, int):
        return value
    import sympy  # half a second of `import segquant`; only torch.export's graphs have symbolic sizes

    expression = value.node.expr
    known = {symbol: sympy.prime(10_000 + int(symbol.name.lstrip("uszk"))) for symbol in expression.free_symbols}
    return int(expression.xreplace(known))


def input_node(node: Node, position: int = 0) -> Node | None:
    given = node.args[position] if len(node.args) > position else None
    return given if isinstance(given, Node) else None


def source(node: Node) -> Node | None:
    """The first argument if it is a tensor."""
    first = input_node(node)
    return first if first is not None and shape(first) is not None else None


def tensor_operands(node: Node) -> list[Node]:
    return [a for a in node.args if isinstance(a, Node) and shape(a) is not None]


def channel_axis(node: Node, dims: int) -> int:
    return dims - 1 if name(node) == "linear" else dims - 3


def groups(node: Node) -> int:
    """A convolution's groups; 1 for a linear."""
    return 1 if name(node) == "linear" else int(argument(node, 6, "groups", 1))


def mixed_axes(node: Node) -> tuple[int, ...] | None:
    """The dimensions that a pooling, resampling, padding or depthwise convolution mixes; None for others."""
    kind, given, result = name(node), shape(source(node)), shape(node)
    if given is None or result is None or len(given) != len(result):
        return None
    if kind in _PAD:  # pairs of before and after, from the last dimension on; (1, -1) shifts
        amounts = argument(node, 1, "pad" if "constant" in kind or kind == "pad" else "padding")
        return tuple(sorted({len(given) - 1 - i // 2 for i, n in enumerate(amounts) if n != 0}))
    if kind[:-2] in _SPATIAL and kind.endswith("d"):
        return tuple(range(len(given)))[-int(kind[-2]) :]
    if kind in _CONV:
        spatial = int(kind[-2])
        channels = given[-spatial - 1]
        if argument(node, 6, "groups", 1) == channels == result[-spatial - 1] and channels > 1:
            return tuple(range(len(given)))[-spatial:]
    return None


def axis_of(value: Any, dims: int) -> int | None:
    """A dimension counted from the front; None if out of range."""
    return value % dims if isinstance(value, int) and dims and -dims <= value < dims else None


def permutation(node: Node, dims: int) -> tuple[int, ...] | None:
    """`order`: output dimension i is input dimension order[i]."""
    if dims > len(_PRIMES):
        return None
    probe = cast(Callable[..., torch.Tensor], node.target)(
        torch.empty(_PRIMES[:dims], dtype=torch.float32, device="meta"), *node.args[1:], **node.kwargs
    )
    return tuple(_PRIMES.index(n) for n in probe.shape)


def pieces(node: Node) -> list[Window] | None:
    """Windows of a chunk, split or unbind, in order."""
    whole, parts = shape(node.args[0]), node.meta.get("val")
    if whole is None or not isinstance(parts, (list, tuple)):
        return None
    if name(node) == "unbind":
        axis = axis_of(argument(node, 1, "dim", 0), len(whole))
        return None if axis is None else [Window(axis, i, i + 1, keeps=False) for i in range(len(parts))]
    shapes = [tuple(_size(n) for n in part.shape) for part in parts]
    axis = next((i for i in range(len(whole)) if shapes[0][i] != whole[i]), 0)
    if sum(s[axis] for s in shapes) != whole[axis]:
        return None
    windows, start = [], 0
    for part in shapes:
        windows.append(Window(axis, start, start + part[axis]))
        start += part[axis]
    return windows


def window(node: Node) -> Window | None:
    """The window that a slice, narrow, select or split's getitem opens on its `window_source`."""
    kind = name(node)
    if kind == "getitem":
        split, index = input_node(node), node.args[1]
        windows = pieces(split) if split is not None and name(split) in SPLIT else None
        return windows[index] if windows and isinstance(index, int) else None
    whole = shape(node.args[0])
    axis = axis_of(argument(node, 1, "dim", 0), len(whole or ()))
    if whole is None or axis is None:
        return None
    size = whole[axis]
    if kind == "select":
        index = _number(argument(node, 2, "index"))
        return None if index is None else Window(axis, index % size, index % size + 1, keeps=False)
    if kind == "narrow":
        start, length = _number(argument(node, 2, "start")), _number(argument(node, 3, "length"))
        if start is None or length is None:
            return None
        return Window(axis, start % size, start % size + length)
    given = argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    numbers = [_number(n) for n in given]
    if any(number is None and n is not None for number, n in zip(numbers, given, strict=True)):
        return None
    return Window(axis, *slice(*numbers).indices(size))


def window_source(node: Node) -> Node | None:
    """The tensor that `window(node)` is part of."""
    if name(node) != "getitem":
        return source(node)
    split = input_node(node)
    return None if split is None else source(split)


def joined(node: Node) -> tuple[int, list[Node], bool] | None:
    """(result axis, operands, whether they have that axis) of a concat or stack."""
    result, parts = shape(node), node.args[0] if node.args else None
    if result is None or not isinstance(parts, (list, tuple)) or any(shape(part) is None for part in parts):
        return None
    dim = min(1, len(result) - 1) if name(node) == "hstack" else argument(node, 1, "dim", 0)
    axis = axis_of(dim, len(result))
    return None if axis is None else (axis, list(parts), name(node) != "stack")
