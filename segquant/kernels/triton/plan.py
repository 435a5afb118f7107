"""How a product's columns are cut into runs, and which tiles suit how many rows on which GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from segquant.kernels.runs import Run, runs_of

SMALLEST_STEP = 32
"""Columns of the narrowest integer product."""
LARGEST_STEP = 128
WIDEST = 16
"""Bytes of the widest load; lengths that it divides are read at full width."""


@dataclass(frozen=True)
class Cut:
    """How the product goes through a layer's runs.

    Args:
        equal: the common length of all runs, where a step of the product holds one; else 0.
        step: columns of that step.
        shared: divides all starts and lengths.
    """

    runs: tuple[Run, ...]
    equal: int
    step: int
    shared: int

    @property
    def kind(self) -> int:
        """One run, equal ones, or listed ones, as the kernel's `RUNS`."""
        return 0 if len(self.runs) == 1 else 1 if self.equal else 2

    @property
    def align(self) -> int:
        return math.gcd(self.shared, WIDEST)


@lru_cache(maxsize=1024)
def cut_of(pieces: tuple[int, ...], dual: tuple[int, ...], groups: tuple[int, ...]) -> Cut:
    """Of input pieces, whether their signs are treated apart, and columns per weight scale."""
    runs = runs_of(pieces, dual, groups)
    lengths = {run.stop - run.start for run in runs}
    length = max(lengths)
    step = max(SMALLEST_STEP, 1 << (length - 1).bit_length())
    if len(lengths) > 1 or len(set(pieces)) > 1 or len(set(groups)) > 1 or len(set(dual)) > 1 or step > LARGEST_STEP:
        length = step = 0
    return Cut(runs, length, step, math.gcd(*(run.stop - run.start for run in runs)))


@dataclass(frozen=True)
class Tile:
    """Of the product's output, and how it is worked on.

    Args:
        step: columns at a time.
        stages: steps whose loads are under way at once.
    """

    rows: int
    outputs: int
    step: int
    warps: int
    stages: int

    def held(self, accumulators: int) -> int:
        """Registers of a thread that its part of the accumulators takes."""
        return self.rows * self.outputs * accumulators // (32 * self.warps)


FEW, SOME, MANY = 16, 128, 1 << 30
"""Rows up to which a class of tiles is meant: modulations of some prompts, small images, images."""
MOST_HELD = 128
"""Of a thread's 255 registers; with more, compiled kernels spill hundreds of bytes."""

_SMALL: dict[int, tuple[Tile, ...]] = {
    FEW: (Tile(16, 32, 128, 2, 4), Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 3)),
    SOME: (Tile(32, 64, 128, 4, 4), Tile(64, 64, 128, 4, 3), Tile(64, 128, 64, 4, 3)),
    MANY: (
        Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 64, 64, 4, 4), Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 64, 4, 3),
    ),
}  # fmt: skip
TILES: dict[tuple[int, int], dict[int, tuple[Tile, ...]]] = {
    # A100, 164 KB of shared memory: mma.sync reads registers, and steps of 128 columns only fit beside one accumulator
    # in eight warps; deep stages hide the memory, for which there is room.
    (8, 0): {
        FEW: (Tile(16, 32, 128, 2, 5), Tile(16, 64, 128, 4, 5), Tile(16, 128, 64, 4, 4)),
        SOME: (Tile(32, 64, 128, 4, 4), Tile(64, 64, 128, 4, 4), Tile(64, 128, 64, 4, 4)),
        MANY: (
            Tile(64, 64, 128, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 128, 64, 4, 4), Tile(128, 128, 128, 8, 3),
            Tile(128, 256, 64, 8, 3),
        ),
    },
    # A10G, RTX 30 and 40, L40S, 100 KB: three stages of 128 x 128 x 64, or tiles half as wide.
    (8, 6): _SMALL,
    # H100 and H200, 228 KB: wgmma reads shared memory, and wants 64 rows for each four warps and wide tiles.
    (9, 0): {
        FEW: (Tile(16, 32, 128, 2, 6), Tile(16, 64, 128, 4, 5), Tile(16, 128, 128, 4, 4)),
        SOME: (Tile(64, 32, 128, 4, 5), Tile(64, 64, 128, 4, 4), Tile(64, 128, 128, 4, 4)),
        MANY: (
            Tile(64, 64, 128, 4, 4), Tile(64, 128, 128, 4, 4), Tile(128, 128, 128, 8, 4), Tile(64, 256, 128, 4, 3),
            Tile(128, 256, 128, 8, 3),
        ),
    },
    # RTX 50: as much shared memory as Ada, and no wgmma.
    (12, 0): _SMALL,
}  # fmt: skip
"""By compute capability, the next lower one for others, and class of rows: what is tried at the first call. Chosen from
what ptxas says of registers and shared memory; none was timed."""
OLDEST = min(TILES)
"""Compute capability that Triton's integer products need."""


def tiles_for(capability: tuple[int, int], rows_class: int, accumulators: int) -> tuple[Tile, ...]:
    """Those whose accumulators fit in registers."""
    known = TILES[max(each for each in TILES if each <= capability)][rows_class]
    return tuple(tile for tile in known if tile.held(accumulators) <= MOST_HELD)


def class_of(rows: int) -> int:
    return next(most for most in (FEW, SOME, MANY) if rows <= most)
