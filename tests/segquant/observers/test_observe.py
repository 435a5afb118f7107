"""One pass: statistics against numpy-like recomputation, folds, the reservoir, bad data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segquant import InputStats, QuantizationError, observe
from segquant.observers.salience import TemporalSalience
from segquant.observers.stats import FOLDS
from tests.segquant.support import Block, block_batches, tensor


class Recorder(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(input=x)


def test_statistics_are_those_of_all_rows() -> None:
    batches = [(tensor(3, 5, 16, seed=s) - 0.5,) for s in range(7)]
    model = Recorder(nn.Linear(16, 4).eval())
    stats = observe(model, iter(batches), gram=True)["linear"]
    rows = torch.cat([batch[0].reshape(-1, 16) for batch in batches])
    assert model.calls == 7 and model.training and not model.linear.training
    assert stats.rows == 105
    assert torch.equal(stats.positive, rows.amax(0).clamp_min(0))
    assert torch.equal(stats.negative, (-rows.amin(0)).clamp_min(0))
    torch.testing.assert_close(stats.mean_square, rows.square().mean(0))
    torch.testing.assert_close(stats.mean_abs, rows.abs().mean(0))
    torch.testing.assert_close(stats.gram, rows.double().T @ rows.double(), rtol=1e-5, atol=1e-4)
    assert not model.linear._forward_pre_hooks


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_held_out_rows_never_entered_the_ranges_beside_them(count: int) -> None:
    batches = [(tensor(4, 16, seed=s) + s,) for s in range(count)]
    stats = observe(Recorder(nn.Linear(16, 4)), batches)["linear"]
    rows = torch.cat([batch[0] for batch in batches])
    splits = stats.held_out()
    assert len(splits) == min(FOLDS, count if count > 1 else FOLDS)
    for split in splits:
        held = {tuple(row) for row in split.rows.tolist()}
        rest = torch.stack([row for row in rows if tuple(row.tolist()) not in held])
        assert torch.equal(split.positive, rest.amax(0).clamp_min(0))
        assert torch.equal(split.negative, (-rest.amin(0)).clamp_min(0))
    assert sum(len(split.rows) for split in splits) == len(rows)


def test_many_rows_need_one_split_only() -> None:
    stats = observe(Recorder(nn.Linear(8, 4)), [(tensor(200, 8, seed=s),) for s in range(4)])["linear"]
    (split,) = stats.held_out()
    assert len(split.rows) == 128 and split.calls == 1
    assert [split.calls for split in stats.held_out(calls=3)] == [1, 1, 1] and stats.calls == 4


def folds_of(batches: list[tuple[torch.Tensor]], seed: int = 0) -> list[torch.Tensor]:
    """Rows of every fold, by the rule: runs of FOLDS batches in random order; the rows of a lone batch in runs."""
    rows = [batch[0].reshape(-1, batch[0].shape[-1]) for batch in batches]
    if len(rows) == 1:
        return list(rows[0].tensor_split(FOLDS))
    order = torch.Generator().manual_seed(seed)
    deal = [fold for _ in rows[::FOLDS] for fold in torch.randperm(FOLDS, generator=order).tolist()]
    return [torch.cat([r for r, f in zip(rows, deal, strict=False) if f == index]) for index in range(FOLDS)]


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("fold", range(FOLDS))
def test_without_a_fold_everything_comes_from_the_other_folds(count: int, fold: int) -> None:
    batches = [(tensor(2, 10, 16, seed=s) + 0.1 * s,) for s in range(count)]
    stats = observe(Recorder(nn.Linear(16, 4)), batches, gram=True, split_gram=True)["linear"]
    rest = torch.cat([rows for index, rows in enumerate(folds_of(batches)) if index != fold])
    view = stats.without_fold(fold)
    assert view.rows == len(rest) == stats.rows * 3 // 4
    assert torch.equal(view.positive, rest.amax(0).clamp_min(0))
    torch.testing.assert_close(view.mean_abs, rest.abs().mean(0))
    torch.testing.assert_close(view.gram, rest.double().T @ rest.double(), rtol=1e-5, atol=1e-4)
    assert {split.fold for split in view.held_out(rows=10**6)} == {0, 1, 2, 3} - {fold}
    assert stats.rows == 20 * count, "a view leaves the whole alone"


def test_the_gram_of_a_large_fold_is_known_for_fold_0_alone() -> None:
    batches = [(tensor(200, 8, seed=s),) for s in range(4)]
    stats = observe(Recorder(nn.Linear(8, 4)), batches, gram=True, split_gram=True)["linear"]
    rest = torch.cat(folds_of(batches)[1:])
    torch.testing.assert_close(stats.without_fold(0).gram, rest.double().T @ rest.double(), rtol=1e-5, atol=1e-4)
    with pytest.raises(QuantizationError, match="linear: the Gram matrix of fold 2 is not known.* 128 of its 200"):
        stats.without_fold(2)
    whole = observe(Recorder(nn.Linear(8, 4)), batches, gram=True)["linear"]
    with pytest.raises(QuantizationError, match="fold 0 is not known"):
        whole.without_fold(0)
    assert observe(Recorder(nn.Linear(8, 4)), batches)["linear"].without_fold(3).gram_sum is None


def test_nothing_is_left_without_the_only_fold() -> None:
    stats = observe(Recorder(nn.Linear(8, 4)), [(tensor(1, 8),)])["linear"]
    with pytest.raises(QuantizationError, match="filled fold 0 alone"):
        stats.without_fold(0)


def test_one_row_gives_no_split() -> None:
    stats = observe(Recorder(nn.Linear(8, 4)), [(tensor(1, 8),)])["linear"]
    assert stats.rows == 1 and stats.held_out() == []


def test_reservoir_is_bounded_seeded_and_uniform() -> None:
    def sample(seed: int) -> torch.Tensor:
        stats = InputStats("x", 1, reservoir=80, seed=seed)
        for start in range(0, 1000, 50):
            stats.update(torch.arange(start, start + 50.0)[:, None], 0)
        assert stats.folds[0] is not None
        return stats.folds[0].sample.flatten().sort().values

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    drawn = torch.stack([sample(seed) for seed in range(60)])
    assert drawn.shape == (60, 20) and all(len(set(row.tolist())) == 20 for row in drawn)
    # 1200 draws from 0 … 999: the mean has a standard error of 8.3
    assert abs(float(drawn.mean()) - 499.5) < 35
    assert abs(float((drawn < 100).float().mean()) - 0.1) < 0.04


def test_repeated_and_shared_linears_merge_their_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a
            self.unused = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * 0 + 7)

    stats = observe(Twice(), [(torch.ones(2, 4),), (torch.ones(2, 4),)])
    assert set(stats) == {"a", "unused"}
    assert stats["a"].rows == 8 and stats["a"].positive.eq(7).all()
    assert stats["unused"].rows == 0
    with pytest.raises(QuantizationError, match="unused: calibration never called"):
        _ = stats["unused"].positive


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_name_the_layer(bad: float) -> None:
    batches = block_batches(3, seed=1)
    batches[2]["condition"][1, 4] = bad
    with pytest.raises(QuantizationError, match="ada: its calibration inputs contain NaN or inf"):
        observe(Block(), batches)


def test_bfloat16_inputs() -> None:
    model = Block().to(torch.bfloat16)
    batches = [{k: v.bfloat16() for k, v in batch.items()} for batch in block_batches(2, seed=1)]
    stats = observe(model, batches, gram={"up"})
    assert stats["up"].gram.dtype == torch.float64 and stats["up"].positive.dtype == torch.float32
    assert stats["ada"].gram_sum is None


def test_salience_takes_the_items_of_the_first_dimension() -> None:
    linear = nn.Linear(16, 4)
    batches = [(tensor(3, 5, 16, seed=s),) for s in range(4)] + [(tensor(16, seed=9),)]
    stats = observe(Recorder(linear), batches, salience=True)["linear"]
    expected = TemporalSalience(linear.weight.detach().abs().amax(0))
    for (batch,) in batches:
        expected.update(batch.reshape(3, 5, 16).abs().amax(1) if batch.dim() == 3 else batch.abs()[None])
    assert expected.items == 13 and stats.salience is not None
    torch.testing.assert_close(stats.salience, expected.value)
    assert observe(Recorder(linear), batches)["linear"].salience is None


def test_no_batches_and_strange_batches() -> None:
    with pytest.raises(QuantizationError, match="no calibration batches"):
        observe(Block(), [])
    with pytest.raises(QuantizationError, match="a calibration batch is a int"):
        observe(Block(), [3])


def test_progress_and_only() -> None:
    seen: list[tuple[str, int, int]] = []
    stats = observe(Block(), block_batches(3, seed=1), only=["up"], progress=lambda *args: seen.append(args))
    assert set(stats) == {"up"}
    assert seen == [("observe", 1, 3), ("observe", 2, 3), ("observe", 3, 3)]


def test_batches_of_one_origin_share_a_fold() -> None:
    class Prompts(list):  # type: ignore[type-arg]
        origins = [index // 3 for index in range(24)]

    model = nn.Sequential(nn.Linear(4, 4))
    batches = Prompts((torch.full((1, 4), float(index // 3)),) for index in range(24))
    stats = observe(model, batches)["0"]
    seen = [set(fold.sample[:, 0].tolist()) for fold in stats.folds if fold is not None]
    assert len(seen) == FOLDS and all(len(values) == 2 for values in seen)
    assert sorted(value for values in seen for value in values) == list(map(float, range(8)))
