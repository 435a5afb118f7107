"""Gram matrices: shared where inputs are the same, apart where they are not, in groups within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from segquant import QuantizationError, observe
from segquant.observers.gram import ENTRY_BYTES, FEW_ROWS, FLUSH, Grams
from segquant.observers.observe import observe_in_groups
from tests.segquant.support import Block, block_batches, tensor


def reference(inputs: list[Tensor]) -> Tensor:
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    return rows.T @ rows


class Attention(nn.Module):
    """Queries, keys and values of one tensor; a gate whose input equals another block's but is another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out, self.gate, self.late = (nn.Linear(8, 8) for _ in range(6))

    def forward(self, x: Tensor, condition: Tensor, stray: bool = False) -> Tensor:
        attended = self.q(x) * self.k(x) + self.v(x * 2 if stray else x)
        gate = self.gate(torch.tanh(condition)) + self.late(torch.tanh(condition))
        return self.out(attended) * gate[:, None]


def attention_batches(count: int, stray: tuple[int, ...] = ()) -> list[dict[str, Tensor | bool]]:
    return [
        {"x": tensor(2, FEW_ROWS, 8, seed=s), "condition": tensor(2, 8, seed=100 + s), "stray": s in stray}
        for s in range(count)
    ]


def test_linears_with_the_same_inputs_share_one_matrix() -> None:
    stats = observe(Attention(), batches := attention_batches(5), gram=True)
    assert stats["q"].gram is stats["k"].gram is stats["v"].gram
    assert stats["gate"].gram is stats["late"].gram, "equal inputs of few rows are recognised by value"
    assert stats["out"].gram is not stats["q"].gram
    torch.testing.assert_close(stats["q"].gram, reference([b["x"] for b in batches]), rtol=1e-5, atol=1e-4)
    expected = reference([b["condition"].tanh() for b in batches])
    torch.testing.assert_close(stats["gate"].gram, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stray", [(0,), (3,), (1, 4), (2, 3)])
def test_linears_that_part_keep_their_own_sums(stray: tuple[int, ...]) -> None:
    stats = observe(Attention(), batches := attention_batches(5, stray), gram=True, split_gram=True)
    values = [b["x"] * (2 if b["stray"] else 1) for b in batches]
    torch.testing.assert_close(stats["v"].gram, reference(values), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(stats["k"].gram, reference([b["x"] for b in batches]), rtol=1e-5, atol=1e-4)
    assert stats["q"].gram is stats["k"].gram is not stats["v"].gram
    for name in ("q", "v"):
        folds = stats[name].gram_first, stats[name].without_fold(0).gram
        torch.testing.assert_close(sum(folds), stats[name].gram)


def test_a_tensor_changed_in_place_is_another_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.a(x)
            x.mul_(3)
            return y + self.b(x) + self.c(x.clone())

    for rows in (2, 2 * FEW_ROWS):
        batches = [(tensor(rows, 4, seed=s),) for s in range(2)]
        stats = observe(InPlace(), batches, gram=True)
        torch.testing.assert_close(stats["b"].gram, 9 * stats["a"].gram, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(stats["c"].gram, stats["b"].gram)


def test_a_linear_called_twice_with_one_tensor_counts_it_twice() -> None:
    grams = Grams({"a": 4, "b": 4})
    x, y = tensor(3, 4, seed=1), tensor(3, 4, seed=2)
    for order in ("aab", "bab", "aba"):
        grams.begin_call()
        for name in order:
            grams.update(name, x, 0)
        grams.update("b", y, 0)
    torch.testing.assert_close(grams.sums("a")[0], 5 * reference([x]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grams.sums("b")[0], 4 * reference([x]) + 3 * reference([y]), rtol=1e-5, atol=1e-5)


def test_inference_tensors_and_many_rows() -> None:
    with torch.inference_mode():
        x = tensor(FLUSH // 2, 4)
    grams = Grams({"a": 4, "b": 4})
    for _ in range(5):
        grams.begin_call()
        grams.update("a", x, 0)
        grams.update("b", x, 0)
    found = grams.sums("a")[0]
    assert found is grams.sums("b")[0]
    torch.testing.assert_close(found, 5 * reference([x]), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("split", [False, True])
def test_groups_within_the_limit_give_the_same_numbers(split: bool) -> None:
    model, batches = Block(), block_batches(9, seed=1)
    whole = observe(model, batches, gram=True, split_gram=split)
    limit = ENTRY_BYTES * 64 * 64 * (2 if split else 1)
    groups = list(observe_in_groups(model, batches, gram=True, split_gram=split, memory_limit=limit))
    assert [set(group.stats) for group in groups] == [{"ada", "up"}, {"down"}, {"out"}]
    assert [(group.passes, group.last) for group in groups] == [(1, False), (2, False), (3, True)]
    for name, found in ((name, entry) for group in groups for name, entry in group.stats.items()):
        assert torch.equal(found.gram, whole[name].gram) and torch.equal(found.mean_square, whole[name].mean_square)
        assert found.rows == whole[name].rows and (found.gram_first is not None) == split


def test_shared_matrices_count_once_against_the_limit() -> None:
    limit = 3 * ENTRY_BYTES * 8 * 8
    (group,) = observe_in_groups(Attention(), iter(attention_batches(3)), gram=True, memory_limit=limit)
    assert set(group.stats) == {"q", "k", "v", "out", "gate", "late"} and group.last


def test_linears_without_a_matrix_come_first() -> None:
    groups = list(
        observe_in_groups(Block(), block_batches(2, seed=1), gram={"down", "out"}, memory_limit=ENTRY_BYTES * 64 * 64)
    )
    assert [set(group.stats) for group in groups] == [{"ada", "up", "down"}, {"out"}]
    assert groups[0].stats["up"].gram_sum is None


def test_a_limit_that_cannot_be_kept_says_what_to_do() -> None:
    limit = ENTRY_BYTES * 64 * 64
    for count in (1, 3):
        with pytest.raises(QuantizationError, match="is an iterator, which can be read once; give a list"):
            list(observe_in_groups(Block(), iter(block_batches(count, seed=1)), gram=True, memory_limit=limit))
    with pytest.raises(QuantizationError, match="down: the Gram matrix of its 64 inputs takes 49,152 bytes"):
        list(observe_in_groups(Block(), block_batches(3, seed=1), gram=True, memory_limit=limit - 1))


def test_other_data_at_the_second_reading_is_refused() -> None:
    class Fickle:
        def __init__(self) -> None:
            self.readings = 0

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            self.readings += 1
            return iter(block_batches(3, seed=self.readings))

    with pytest.raises(QuantizationError, match="gave other inputs when it was read again"):
        list(observe_in_groups(Block(), Fickle(), gram=True, memory_limit=ENTRY_BYTES * 64 * 64))
