"""The CPU's attention against brute force in float64: of floats, and of the same codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as nnf

from segquant.kernels.cpu import operators
from segquant.kernels.cpu.attention import KernelAttention, attend
from tests.segquant.support import tensor

REASON = operators.why_not_exact()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the cpu backend {REASON}")

BLOCK = 128
"""Keys whose weights share a largest code."""
SHAPES = [
    # batch, heads, queries, keys, size
    (1, 1, 1, 1, 4), (1, 2, 5, 7, 4), (2, 3, 50, 130, 64), (1, 2, 49, 300, 40), (1, 2, 60, 64, 72), (1, 1, 7, 128, 12),
    (1, 2, 13, 129, 32), (1, 2, 6, 65, 160), (2, 1, 97, 33, 128), (1, 2, 48, 257, 20), (1, 1, 3, 2, 256),
]  # fmt: skip


def qkv(batch: int, heads: int, queries: int, keys: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values that are not centred, as denoisers have them."""
    q = tensor(batch, heads, queries, size, seed=seed)
    k = tensor(batch, heads, keys, size, seed=seed + 1) + 3 * tensor(1, heads, 1, size, seed=seed + 2)
    return q, k, tensor(batch, heads, keys, size, seed=seed + 3) + 1


def brute(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return (q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1) @ v


def codes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """float32 values -> codes -127 … 127 and their scale, both float64."""
    most = x.abs().amax(dim, keepdim=True)
    scale = torch.where(most > 0, most / 127, torch.ones(()))
    return (x * (1 / scale)).round().double(), scale.double()


def brute_codes(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """By the definition: queries and centred keys in codes per token, centred values in codes per channel, weights in
    255 steps of the largest of a block of keys."""
    left, by_query = codes(q.float() * scale, -1)
    right, by_key = codes(k.float() - k.float().mean(-2, keepdim=True), -1)
    mean = v.float().mean(-2, keepdim=True)
    values, by_channel = codes(v.float() - mean, -2)
    scores = left @ right.mT * by_query * by_key.mT
    top, over, under = scores.amax(-1, keepdim=True), torch.zeros(()), torch.zeros(())
    for start in range(0, scores.shape[-1], BLOCK):
        part = scores[..., start : start + BLOCK]
        largest = part.amax(-1, keepdim=True)
        weights, share = (part - largest).exp(), (largest - top).exp()
        over = over + share / 255 * ((255 * weights).round() @ values[..., start : start + BLOCK, :])
        under = under + share * weights.sum(-1, keepdim=True)
    return over / under * by_channel + mean.double()


def apart(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Median and largest difference, in parts of the largest value."""
    assert found.shape == expected.shape
    gap = (found.double() - expected).abs() / expected.abs().max().clamp_min(1e-30)
    return float(gap.median()), float(gap.max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_floats_are_attention(shape: tuple[int, ...]) -> None:
    q, k, v = qkv(*shape)
    median, worst = apart(operators.attention(q, k, v, shape[-1] ** -0.5, False), brute(q, k, v))
    assert median < 1e-6 and worst < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_those_of_the_definition(shape: tuple[int, ...]) -> None:
    q, k, v = qkv(*shape)
    scale = shape[-1] ** -0.5
    found = operators.attention(q, k, v, scale, True)
    median, worst = apart(found, brute_codes(q, k, v, scale))
    assert median < 2e-6 and worst < 5e-3  # a weight near a tie takes the other code
    # of few keys weights are coarse; of many they are not
    assert float((found - brute(q, k, v)).norm() / brute(q, k, v).norm()) < 0.02


def test_integers_are_exact() -> None:
    """The largest codes of both signs everywhere: sums beyond 16 bits, and a step of one that shows."""
    generator = torch.Generator().manual_seed(0)
    for size, keys in ((64, 128), (256, 256), (4, 130)):
        q = torch.randint(-127, 128, (1, 1, 9, size), generator=generator).float()
        k = torch.randint(-127, 128, (1, 1, keys // 2, size), generator=generator).float()
        q[..., 0], k[..., 0], k[0, 0, :4], q[0, 0, 0], q[0, 0, 1] = 127, 127, 127, 127, -127
        k = torch.cat((k, -k), 2)  # of mean 0
        v = torch.cat((torch.full((keys // 2, size), 127.0), torch.full((keys // 2, size), -127.0)))[None, None]
        scale = 4 / (127 * 127 * size)
        found = operators.attention(q, k, v, scale, True)
        assert apart(found, brute_codes(q, k, v, scale))[0] < 1e-6
        sharp = operators.attention(127 * k.sign(), k, v, 1.0, True)  # each query on keys of its own half
        assert torch.allclose(sharp[0, 0, 0], torch.full((size,), 127.0), rtol=1e-6)
        assert torch.allclose(sharp[0, 0, -keys // 2], torch.full((size,), -127.0), rtol=1e-6)


def test_powers_are_within_their_bound() -> None:
    """Of one key's weight beside another's: 2^-t / (1 + 2^-t)."""
    scale = float(np.float32(np.log(2)))
    by = float(np.float32(scale) * np.float32(1.44269504088896341))
    t = torch.linspace(0, 125, 4001)
    k, v = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    k[0, 0, 1, 0], v[0, 0, 1] = -1, 1
    found = operators.attention(nnf.pad(t.reshape(1, 1, -1, 1), (0, 3)), k, v, scale, False)[0, 0, :, 0].double()
    expected = torch.exp2(-(t * by).double())
    assert float((found / (expected / (1 + expected)) - 1).abs().max()) < 3.5e-7


def test_every_layout_of_tensors() -> None:
    q, k, v = qkv(2, 3, 21, 70, 32)
    for each in (False, True):
        expected = operators.attention(q, k, v, 0.2, each)
        assert expected.transpose(1, 2).is_contiguous()  # as what follows wants it
        beside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(operators.attention(*beside, 0.2, each), expected)
        across = [x.mT.contiguous().mT for x in (q, k, v)]
        assert torch.equal(attend(*across, scale=0.2, codes=each), expected)
        same = operators.attention(q[:1].expand(2, -1, -1, -1), k, v, 0.2, each)
        assert torch.equal(same[0], expected[0])
        half = [x.bfloat16() for x in (q, k, v)]
        found = operators.attention(*half, 0.2, each)
        wide = operators.attention(*(x.float() for x in half), 0.2, each)
        assert found.dtype == torch.bfloat16 and torch.equal(found, wide.bfloat16())
    assert operators.attention(q[:, :, :0], k, v, 0.2, True).shape == (2, 3, 0, 32)


def test_large_scores_and_constant_values() -> None:
    q, k, v = qkv(1, 2, 20, 300, 64)
    for each in (False, True):
        found = operators.attention(1e4 * q, 1e4 * k, v, 1.0, each)
        assert bool(found.isfinite().all()) and apart(found, brute(1e4 * q, 1e4 * k, v, 1.0))[0] < 0.02
        for small in (0, 1e-37, 1e-30):
            nothing = operators.attention(small * q, small * k, v, 1.0, each)
            assert apart(nothing, v.double().mean(2, keepdim=True).expand_as(nothing))[1] < 3e-3
            tiny = operators.attention(small * q, k, v, 1.0, each)
            assert apart(tiny, v.double().mean(2, keepdim=True).expand_as(tiny))[1] < 3e-3
        assert apart(operators.attention(q, k, 0 * v + 2, 0.1, each), torch.full_like(v, 2.0)[:, :, :20])[1] < 1e-6
        flipped = operators.attention(q, k, v, -0.1, each)
        assert torch.equal(flipped, operators.attention(-q, k, v, 0.1, each))


@pytest.mark.parametrize("small", [1e-36, 1e-39, 1e-41, 1e-42])
def test_values_have_codes_however_small(small: float) -> None:
    q, k, v = qkv(1, 2, 20, 300, 64)
    v = (v - v.mean(2, keepdim=True)) * small
    for each, bound in ((False, 1e-2), (True, 0.04)):  # a float of 1e-42 has ten bits
        found = operators.attention(q, k, v, 0.1, each).double() / small
        assert apart(found, brute(q, k, v, 0.1) / small)[1] < bound


def test_what_is_no_number_spreads_as_torch_spreads_it() -> None:
    for which, place in ((0, (0, 1, 3, 5)), (1, (0, 0, 200, 5)), (2, (0, 1, 0, 7))):
        tensors = list(qkv(1, 2, 20, 300, 64))
        tensors[which][place] = float("nan")
        expected = nnf.scaled_dot_product_attention(*tensors).isnan()
        assert 0 < int(expected.sum()) < expected.numel()
        for each in (False, True):
            assert torch.equal(operators.attention(*tensors, 0.125, each).isnan(), expected)


def test_threads_change_no_bit() -> None:
    before, tensors = torch.get_num_threads(), qkv(2, 3, 200, 300, 64)
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([operators.attention(*tensors, 0.125, each) for each in (False, True)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_torch_computes_what_the_kernel_does_not_take() -> None:
    q, k, v = qkv(1, 4, 9, 9, 16)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    assert not torch.equal(attend(q, k, v, codes=True), nnf.scaled_dot_product_attention(q, k, v))
    for given, options in (
        ((q, k, v), {"attn_mask": mask}), ((q, k, v), {"is_causal": True}),
        ((q, k[:, :2], v[:, :2]), {"enable_gqa": True}), ((q[0], k[0], v[0]), {}),
        ((q[..., :6], k[..., :6], v), {}), ((q, k, v[..., :8]), {}), ((q.double(), k.double(), v.double()), {}),
        ((q.half(), k.half(), v.half()), {}), ((q, k[:, :1], v[:, :1]), {}),
    ):  # fmt: skip
        assert torch.equal(attend(*given, codes=True, **options), nnf.scaled_dot_product_attention(*given, **options))
    torch.manual_seed(0)
    dropped = attend(q, k, v, dropout_p=0.5, codes=True)
    torch.manual_seed(0)
    assert torch.equal(dropped, nnf.scaled_dot_product_attention(q, k, v, dropout_p=0.5))


def test_only_calls_inside_are_the_kernel_s() -> None:
    q, k, v = qkv(1, 2, 9, 9, 16)
    expected = nnf.scaled_dot_product_attention(q, k, v, scale=0.3)
    with KernelAttention(True) as kernel:
        assert not kernel.seen
        found = nnf.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.3)
    assert kernel.seen and torch.equal(found, operators.attention(q, k, v, 0.3, True))
    assert torch.equal(nnf.scaled_dot_product_attention(q, k, v, scale=0.3), expected)


def test_gradients_are_those_of_attention() -> None:
    found, expected = [], []
    for into, function in ((found, lambda *x: attend(*x, codes=True)), (expected, nnf.scaled_dot_product_attention)):
        tensors = [x.requires_grad_() for x in qkv(1, 2, 9, 12, 16)]
        function(*tensors).square().sum().backward()
        into += [x.grad for x in tensors]
    for one, other in zip(found, expected, strict=True):
        assert one is not None and float((one - other).norm() / other.norm()) < 0.05


def test_tensors_that_do_not_fit_are_refused() -> None:
    q, k, v = qkv(1, 2, 9, 12, 16)
    for given in ((q, k, v[:, :, 1:]), (q, k[..., :8], v), (q.mT, k, v), (q, k.bfloat16(), v), (q[0], k[0], v[0])):
        with pytest.raises(RuntimeError, match="must"):
            operators.attention(*given, 1.0, True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -DSEGQUANT_BYTES"])
def test_vectors_of_256_bits_are_attention(flags: str, tmp_path: Path) -> None:
    """What a processor without AVX-512 and VNNI runs, and one with AVX-VNNI, without its instruction."""
    own = {"SEGQUANT_CACHE": str(tmp_path), "CXXFLAGS": flags, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout and len(list(tmp_path.glob("cpu-*.so"))) == 1
