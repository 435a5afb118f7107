"""GGUF's block formats: what the gguf package reads from our buffers, and what its own quantizer makes.

gguf takes a code from the scale before that is rounded to float16, we from the one that is stored, so that ours are the
nearest values to be had; and its ties go away from zero or up, ours to the even code.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segquant.errors import QuantizationError
from tests.segquant.numerics.references.gguf_blocks import K_SCALES, blocks
from tests.segquant.numerics.references.support import KINDS, Kept, by_block, draw, is_halfway, kept

gguf = pytest.importorskip("gguf")
PLAIN = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
SHAPES = ((5, 512), (1, 256), (33, 256))
WITHIN_FLOAT16 = ["random", "heavy", "constant", "negative", "ties", "zeros"]


def _type(name: str) -> int:
    found: int = gguf.GGMLQuantizationType[name.upper()]
    return found


def _read(stored: np.ndarray, name: str) -> Tensor:
    with np.errstate(invalid="ignore"):  # infinite scales
        return torch.from_numpy(gguf.dequantize(stored, _type(name)).copy())


def _theirs(weight: Tensor, name: str) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):  # blocks of zeros, and of denormals
        found: np.ndarray = gguf.quantize(weight.numpy(), _type(name))
    return found


@pytest.mark.parametrize("name", [*PLAIN, *K_SCALES])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [*WITHIN_FLOAT16, "denormal"])
def test_gguf_reads_our_values(kind: str, shape: tuple[int, int], name: str) -> None:
    ours = kept(draw(kind, *shape), name)
    stored = blocks(ours, name)
    assert stored.nbytes == sum(ours.buffers[key].nbytes for key in ours.layout.buffers())
    assert torch.equal(_read(stored, name), ours.values)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [*SHAPES, (7, 96)])
@pytest.mark.parametrize("kind", WITHIN_FLOAT16)
def test_its_quantizer_makes_the_same_but_at_near_ties(kind: str, shape: tuple[int, int], name: str) -> None:
    weight = draw(kind, *shape)
    ours, stored = kept(weight, name), _theirs(weight, name)
    values = _read(stored, name)
    alike = _same_scales(ours, stored, name)
    used = _uses_scale(by_block(weight, 32), name)
    tied = _is_tied(by_block(weight, 32)) if name in ("q4_0", "q5_0") else torch.zeros_like(used)
    assert (alike | ~used | tied).all() and ((tied & used).any() <= (kind == "ties"))
    _check_codes(weight, ours, values, alike)


def _same_scales(ours: Kept, stored: np.ndarray, name: str) -> Tensor:
    heads = 4 if name.endswith("1") else 2
    found = [part.reshape(*ours.scales.scale.shape, -1)[..., :heads] for part in (blocks(ours, name), stored)]
    return torch.from_numpy((found[0] == found[1]).all(-1))


def _uses_scale(block: Tensor, name: str) -> Tensor:
    """Whether a block is more than its least value, or than zero."""
    return (block.amax(-1) > block.amin(-1)) if name.endswith("1") else (block.abs().amax(-1) > 0)


def _is_tied(block: Tensor) -> Tensor:
    """Blocks with their largest magnitude on both sides: gguf takes the first, we the negative one."""
    return block.amax(-1) == -block.amin(-1)


def _check_codes(weight: Tensor, ours: Kept, values: Tensor, alike: Tensor) -> None:
    wide = alike.repeat_interleave(32, 1)
    scale, least = ours.scales.scale, ours.scales.least
    step = scale.abs().repeat_interleave(32, 1)
    assert ((ours.values - values).abs() <= 1.001 * step)[wide].all()
    assert ((ours.values - weight).abs() <= (values - weight).abs() + 1e-6 * weight.abs())[wide].all()
    start = torch.zeros_like(weight) if least is None else least.repeat_interleave(32, 1)
    quotient = (weight.double() - start) / step
    codes = torch.arange(-300.0, 301.0)
    slack = 2.0**-11 * (start.abs() + weight.abs()) / weight.abs().clamp_min(1e-30)  # float16's rounding of both
    middle = is_halfway(quotient, codes, 2.0**-10) if least is None else _near(quotient, slack * quotient.abs() + 0.02)
    differ = (ours.values != values) & wide
    assert middle[differ].all() and differ.float().mean() < 0.03


def _near(quotient: Tensor, slack: Tensor) -> Tensor:
    return (quotient - quotient.floor() - 0.5).abs() <= slack


@pytest.mark.parametrize("kind", ["random", "heavy", "constant", "huge", "negative", "zeros", "ties"])
def test_its_mxfp4(kind: str) -> None:
    """Same scales; of two neighbours as near, gguf takes the lower magnitude, the specification the even code."""
    weight = draw(kind, 9, 96)
    ours, stored = kept(weight, "mxfp4"), _theirs(weight, "mxfp4")
    used = by_block(weight, 32).abs().amax(-1) > 0
    scales = torch.from_numpy(stored.reshape(9, 3, 17)[..., 0].copy())
    assert torch.equal(ours.buffers["weight_scale"][used], scales[used])
    values = _read(stored, "mxfp4")
    differ = values != ours.values
    scale = ours.scales.scale.repeat_interleave(32, 1)
    odd_middles = torch.tensor([0.75, 1.75, 3.5])
    assert torch.isin((weight / scale).abs()[differ], odd_middles).all()
    assert bool(differ.any()) == (kind == "ties")


def test_it_reads_our_nvfp4() -> None:
    """Its blocks have four block scales and no second scale, which is multiplied afterwards."""
    weight = draw("random", 6, 192)
    ours = kept(weight, "nvfp4")
    codes = ours.codes.reshape(6, 3, 4, 2, 8)
    packed = (codes[..., 0, :] | codes[..., 1, :] << 4).flatten(2)
    scales = ours.buffers["weight_scale"].reshape(6, 3, 4)
    values = _read(torch.cat((scales, packed), -1).flatten(1).numpy(), "nvfp4")
    torch.testing.assert_close(values * ours.buffers["weight_scale_2"], ours.values, rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", [*PLAIN, *K_SCALES])
def test_scales_beyond_float16_are_refused_where_gguf_stores_infinity(name: str) -> None:
    weight = draw("huge", 2, 256)
    with pytest.raises(QuantizationError, match="beyond float16, which ends at 65504"):
        kept(weight, name)
    if name in PLAIN:
        assert not torch.isfinite(_read(_theirs(weight, name), name)).all()


def test_all_kinds_of_weights_are_seen() -> None:
    assert {*WITHIN_FLOAT16, "denormal", "huge"} == set(KINDS)
