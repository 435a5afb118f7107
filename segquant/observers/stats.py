"""Running statistics of one linear's input.

Each fold has its own ranges, moments and sample, so that hyper-parameters are judged on held-out rows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from segquant.checks import check_fields
from segquant.errors import QuantizationError
from segquant.modules.state import own_state

FOLDS = 4


@dataclass
class FoldStats:
    """Statistics of one fold.

    Attributes:
        positive: largest value per channel, at least 0, float32 [in].
        negative: magnitude of the smallest, likewise.
        square: sum of squares, float64 [in].
        absolute: sum of magnitudes, float64 [in].
        sample: [kept, in] in the input's dtype.
        keys: draws of the kept rows.
    """

    positive: Tensor
    negative: Tensor
    square: Tensor
    absolute: Tensor
    rows: int
    calls: int
    sample: Tensor
    keys: Tensor


@dataclass(frozen=True)
class HeldOut:
    """One split: `rows` [n, in], held out, of `calls` calls of `fold`.

    Attributes:
        positive: range of the other folds, as in `FoldStats`.
        negative: likewise.
        fit: sample of the other folds' rows [m, in].
        mean_abs: mean magnitude there [in].
    """

    positive: Tensor
    negative: Tensor
    rows: Tensor
    calls: int = 1
    fold: int = -1
    fit: Tensor | None = None
    mean_abs: Tensor | None = None


@dataclass
class InputStats:
    """Running statistics of one linear's input, on its device.

    Args:
        name: for messages.
        reservoir: rows kept, over all folds, drawn by `seed`.
        keep_gram: `update` accumulates XᵀX.
        split_gram: and fold 0's alone.
        folds: None until a row arrives.
        gram_sum: XᵀX of all rows, float64 [in, in].
        gram_first: of fold 0's rows.
        salience: channel peaks averaged over denoiser calls, float32 [in].
    """

    name: str
    in_features: int
    reservoir: int = 512
    seed: int = 0
    keep_gram: bool = False
    split_gram: bool = False
    folds: list[FoldStats | None] = field(default_factory=lambda: [None] * FOLDS)
    gram_sum: Tensor | None = None
    gram_first: Tensor | None = None
    salience: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.in_features < 1 or self.reservoir < FOLDS:
            raise QuantizationError(
                f"{self.name}: in_features={self.in_features}, reservoir={self.reservoir}; give at least 1 feature and "
                f"{FOLDS} rows, one per fold"
            )
        seed = (self.seed * 0x9E3779B1 + zlib.crc32(self.name.encode())) & 0x7FFFFFFF
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def rows(self) -> int:
        """Rows seen."""
        return sum(fold.rows for fold in self.folds if fold is not None)

    @property
    def calls(self) -> int:
        """Calls seen; rows of one call share a timestep."""
        return sum(fold.calls for fold in self.folds if fold is not None)

    @property
    def positive(self) -> Tensor:
        """Largest value per channel, at least 0, float32 [in]."""
        return torch.stack([fold.positive for fold in self._seen()]).amax(0)

    @property
    def negative(self) -> Tensor:
        """Magnitude of the smallest value per channel, at least 0, float32 [in]."""
        return torch.stack([fold.negative for fold in self._seen()]).amax(0)

    @property
    def mean_square(self) -> Tensor:
        """Mean square per channel, float32 [in]."""
        return (torch.stack([fold.square for fold in self._seen()]).sum(0) / self.rows).float()

    @property
    def mean_abs(self) -> Tensor:
        """Mean magnitude per channel, float32 [in]."""
        return (torch.stack([fold.absolute for fold in self._seen()]).sum(0) / self.rows).float()

    @property
    def sample(self) -> Tensor:
        """Kept rows, float32 [n, in]."""
        return torch.cat([fold.sample for fold in self._seen()]).float()

    @property
    def gram(self) -> Tensor:
        """XᵀX, float64 [in, in]; shared between layers, do not modify."""
        if self.gram_sum is None:
            raise QuantizationError(
                f"{self.name}: this method needs the Gram matrix of the layer's input, which was "
                "not collected; pass gram=True to observe"
            )
        return self.gram_sum

    def held_out(self, limit: int = 256, rows: int = 128, calls: int = 1, *, fit: bool = False) -> list[HeldOut]:
        """Splits for hyper-parameters: one fold held out each, until that is `rows` rows of `calls` calls.

        Empty if fewer than two folds have rows.

        Args:
            limit: most rows of one fold's sample.
            fit: give each split the other folds' sample.
        """
        splits: list[HeldOut] = []
        if len(self._seen()) < 2:
            return splits
        for index, fold in enumerate(self.folds):
            if fold is None:
                continue
            others = [other for other in self._seen() if other is not fold]
            positive = torch.stack([other.positive for other in others]).amax(0)
            negative = torch.stack([other.negative for other in others]).amax(0)
            sample = torch.cat([other.sample for other in others]).float() if fit else None
            absolute = torch.stack([other.absolute for other in others]).sum(0) / sum(other.rows for other in others)
            held = fold.sample[:limit].float()
            splits.append(HeldOut(positive, negative, held, fold.calls, index, sample, absolute.float()))
            if sum(len(s.rows) for s in splits) >= rows and sum(s.calls for s in splits) >= calls:
                break
        return splits

    def by_fold(self) -> list[HeldOut]:
        """Every fold with its own ranges and sample."""
        found = []
        for index, fold in enumerate(self.folds):
            if fold is not None:
                sample, absolute = fold.sample.float(), (fold.absolute / fold.rows).float()
                found.append(HeldOut(fold.positive, fold.negative, sample, fold.calls, index, sample, absolute))
        return found

    def without_fold(self, fold: int) -> InputStats:
        """The statistics of all folds but one (salience: of all).

        The Gram matrix is known for fold 0 with `split_gram`, else if the reservoir has all its rows.

        Raises:
            QuantizationError: no other fold has rows, or the Gram matrix is unknown.
        """
        others = [None if index == fold else entry for index, entry in enumerate(self.folds)]
        if not any(others):
            raise QuantizationError(
                f"{self.name}: calibration filled fold {fold} alone, so nothing is left without it; give more batches"
            )
        gram = None if self.gram_sum is None else self.gram_sum - self._gram_of(fold)
        return replace(self, folds=others, gram_sum=gram, gram_first=None)

    @own_state()
    def update(self, x: Tensor, fold: int | None) -> None:
        """Take in an input [..., in]; `fold` None deals its rows over all folds."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.shape[0] == 0:
            return
        parts = rows.tensor_split(FOLDS) if fold is None else [rows]
        for index, part in enumerate(parts, start=fold or 0):
            if part.shape[0]:
                self._update_fold(part, index)
        if self.keep_gram:
            self.gram_sum = _plus(self.gram_sum, product(rows))
            if self.split_gram and not fold and parts[0].shape[0]:
                self.gram_first = _plus(self.gram_first, product(parts[0]))

    def _gram_of(self, index: int) -> Tensor:
        fold = self.folds[index]
        if fold is None:
            return torch.zeros_like(self.gram)
        if index == 0 and self.gram_first is not None:
            return self.gram_first
        if len(fold.sample) == fold.rows:
            return product(fold.sample)
        raise QuantizationError(
            f"{self.name}: the Gram matrix of fold {index} is not known: it was not kept apart, and the reservoir "
            f"holds {len(fold.sample)} of its {fold.rows} rows; hold out fold 0 of an observe(split_gram=True)"
        )

    def _update_fold(self, rows: Tensor, index: int) -> None:
        values = rows.float()
        high, low = values.amax(0), values.amin(0)  # much faster than aminmax along rows
        square = values.square().sum(0, dtype=torch.float64)
        absolute = values.abs().sum(0, dtype=torch.float64)
        keys = torch.rand(rows.shape[0], generator=self.generator, dtype=torch.float32, device="cpu")
        old = self.folds[index]
        if old is None:
            high, low, count = high.clamp_min(0), (-low).clamp_min(0), rows.shape[0]
            self.folds[index] = FoldStats(high, low, square, absolute, count, 1, *self._keep(rows, keys))
            return
        # torch.maximum carries NaN along, so one look at the end finds bad data
        old.positive = torch.maximum(old.positive, high)
        old.negative = torch.maximum(old.negative, -low)
        old.square += square
        old.absolute += absolute
        old.rows += rows.shape[0]
        old.calls += 1
        self._sample(old, rows, keys)

    def _sample(self, fold: FoldStats, rows: Tensor, keys: Tensor) -> None:
        kept = len(fold.keys)
        if kept < self.reservoir // FOLDS:
            rows, keys = self._keep(rows, keys)
            fold.sample, fold.keys = self._keep(torch.cat((fold.sample, rows)), torch.cat((fold.keys, keys)))
            return
        chosen = torch.topk(torch.cat((fold.keys, keys)), kept).indices
        stays = torch.zeros(kept, dtype=torch.bool, device="cpu")
        stays[chosen[chosen < kept]] = True
        slots, fresh = (~stays).nonzero()[:, 0], chosen[chosen >= kept] - kept
        fold.keys[slots] = keys[fresh]
        fold.sample[slots.to(rows.device)] = rows[fresh.to(rows.device)]

    def _keep(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rows with the largest keys: a uniform sample, whatever the batching."""
        chosen = torch.topk(keys, min(self.reservoir // FOLDS, len(keys))).indices
        return rows[chosen.to(rows.device)].clone(), keys[chosen]

    def _seen(self) -> list[FoldStats]:
        seen = [fold for fold in self.folds if fold is not None]
        if not seen:
            raise QuantizationError(
                f"{self.name}: calibration never called this linear; leave it out with `skip`, or "
                "set on_uncalled='skip'"
            )
        return seen

    def check_finite(self) -> None:
        """Raise QuantizationError if NaN or inf came in."""
        for fold in self.folds:
            if fold is not None and not bool(torch.isfinite(fold.square).all()):
                raise QuantizationError(
                    f"{self.name}: its calibration inputs contain NaN or inf (or overflow when "
                    "squared); check the model's dtype and the calibration data"
                )


def product(rows: Tensor) -> Tensor:
    """XᵀX of rows [n, in], multiplied in float32, as float64 [in, in]."""
    values = rows.float()
    return (values.T @ values).double()


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)
