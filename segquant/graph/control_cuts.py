"""Other cuts than the graph's: of SegLinear's controls (arXiv 2507.14811, Table 6), and of Q-Diffusion."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate, pairwise

from segquant.errors import QuantizationError
from segquant.graph.segments import Segments

Sizes = tuple[int, ...]


def random_cuts(segments: Segments, seed: int, *, multiple: int = 1) -> Segments:
    """As many pieces as the graph's, cut uniformly elsewhere (its own places only if others are too few).

    An uncut side stays so. An input piece keeps an activation only if all that it covers had it.

    Args:
        seed: same cuts on every machine; mix in the layer's name.
        multiple: input pieces are multiples of it (the group size).

    Raises:
        QuantizationError: `multiple` is below 1 or does not divide the input's width.
    """
    generator = random.Random(seed)
    output = segments.output and _random_sizes(segments.output, 1, generator)
    cut = segments.input and _random_sizes(segments.input, _checked(segments.input, multiple), generator)
    return _recut(segments, output, cut)


def wrong_cuts(segments: Segments, *, multiple: int = 1) -> Segments:
    """One piece more than the graph's (one less on a side too narrow), as equal as possible; else as `random_cuts`."""
    output = segments.output and _equal_sizes(segments.output, 1)
    cut = segments.input and _equal_sizes(segments.input, _checked(segments.input, multiple))
    return _recut(segments, output, cut)


def skip_cuts(segments: Segments) -> Segments:
    """Of the graph's cuts those of a UNet's skips: the input of a convolution where it is a concat."""
    if segments.skip:
        return replace(segments, output=None)
    pieces = segments.input_activations
    # an uncut input comes out of an activation if all of its pieces do
    whole = segments.activation or (pieces[0] if pieces and all(pieces) else None)
    return Segments(None, None, whole)


def _checked(sizes: Sizes, multiple: int) -> int:
    if multiple < 1 or sum(sizes) % multiple:
        raise QuantizationError(
            f"input pieces cannot be multiples of {multiple}, which does not divide the input's {sum(sizes)} channels"
        )
    return multiple


def _random_sizes(sizes: Sizes, multiple: int, generator: random.Random) -> Sizes:
    total, count = sum(sizes), len(sizes) - 1
    graph = set(accumulate(sizes[:-1]))
    places = range(multiple, total, multiple)
    others = [place for place in places if place not in graph]
    chosen = generator.sample(others, min(count, len(others)))
    own = [place for place in places if place in graph]
    chosen += generator.sample(own, min(count - len(chosen), len(own)))
    return tuple(stop - start for start, stop in pairwise([0, *sorted(chosen), total]))


def _equal_sizes(sizes: Sizes, multiple: int) -> Sizes:
    units = sum(sizes) // multiple
    count = len(sizes) + 1 if len(sizes) < units else len(sizes) - 1
    edges = [multiple * (piece * units // count) for piece in range(count + 1)]
    return tuple(stop - start for start, stop in pairwise(edges))


def _recut(segments: Segments, output: Sizes | None, cut: Sizes | None) -> Segments:
    output = output if output and len(output) > 1 else None
    if not segments.input or not cut or not segments.input_activations:
        return Segments(output, None, segments.activation)
    before = list(zip(pairwise([0, *accumulate(segments.input)]), segments.input_activations, strict=True))
    activations = []
    for start, stop in pairwise([0, *accumulate(cut)]):
        covered = {name for (low, high), name in before if low < stop and start < high}
        activations.append(covered.pop() if len(covered) == 1 else None)
    if len(cut) == 1:
        return Segments(output, None, segments.activation or activations[0])
    return Segments(output, cut, segments.activation, tuple(activations))
