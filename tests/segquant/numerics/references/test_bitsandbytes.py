"""bitsandbytes: its NF4 codes and values, and how its FP4 differs from OCP's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segquant import QuantSpec
from segquant.numerics.grids import GRIDS, NF4
from tests.segquant.numerics.references.support import draw, kept

pytest.importorskip("bitsandbytes")
from bitsandbytes import functional as bnb

NF4_64 = QuantSpec("nf4", "group", 64, scale_dtype="float32")
NORMAL = ["random", "heavy", "constant", "huge", "negative", "ties", "zeros"]


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales [out, groups], values."""
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes = torch.stack((packed >> 4, packed & 15), -1).reshape(weight.shape)
    return codes, state.absmax.reshape(weight.shape[0], -1), bnb.dequantize_4bit(packed, state)


def test_the_nf4_table() -> None:
    assert torch.equal(bnb.get_4bit_type("nf4", device="cpu"), torch.tensor(NF4))


@pytest.mark.parametrize("shape", [(5, 192), (1, 512), (33, 64)])
@pytest.mark.parametrize("kind", NORMAL)
def test_nf4_codes_scales_and_values(kind: str, shape: tuple[int, int]) -> None:
    weight = draw(kind, *shape)
    ours, (codes, scales, values) = kept(weight, NF4_64), _nf4(weight)
    used = scales > 0  # a block of zeros has any scale
    assert torch.equal(ours.scales.scale[used], scales[used])
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.values, values)


def test_nf4_of_denormal_weights() -> None:
    """bitsandbytes divides by at least 1e-38, which leaves nothing of weights below; ours keep what float32 can."""
    weight = draw("denormal", 4, 64)
    codes, scales, _ = _nf4(weight)
    ours = kept(weight, NF4_64)
    scale = ours.scales.scale.double().repeat_interleave(64, 1)
    table = torch.tensor(NF4, dtype=torch.float64)
    nearest = (weight.double()[..., None] / scale[..., None] - table).abs().amin(-1)
    assert ((ours.values.double() - weight.double()).abs() <= nearest * scale + 2.0**-149).all()
    assert (scales < torch.finfo(torch.float32).tiny).all() and len(codes.unique()) > 2


def test_its_fp4_is_not_e2m1() -> None:
    """Seven of its eight magnitudes are those of e2m1, over 6; its least is 1/192 where e2m1 has 1/12."""
    theirs = bnb.get_4bit_type("fp4", device="cpu")[:8].sort().values
    ours = GRIDS["fp4_e2m1"].values(torch.device("cpu"))[:8] / 6
    assert theirs[1].item() == pytest.approx(1 / 192, rel=1e-3) and ours[1].item() == pytest.approx(1 / 12)
    torch.testing.assert_close(theirs[[0, 2, 3, 4, 5, 6, 7]], ours[[0, 2, 3, 4, 5, 6, 7]], rtol=1e-5, atol=0)
