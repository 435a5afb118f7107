"""One pass over the calibration inputs: running statistics of every linear's input.

Batches are dealt to FOLDS folds, each with its own ranges and its own small reservoir of rows, so that
hyper-parameters can be judged on rows that did not fit them (`InputStats.held_out`), while final scales come
from all rows (`InputStats.positive`, `.negative`, `.gram`). Whole batches share a fold, since rows of one
denoiser call resemble each other; with a single batch the rows themselves are dealt, in contiguous runs.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError

log = logging.getLogger(__name__)

FOLDS = 4
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""


@dataclass
class FoldStats:
    """Ranges, energy and a sample of the rows of one fold.

    positive, negative: per channel largest value and magnitude of the smallest, at least 0, float32 [in];
    square: float64 [in], sum of squares; rows, calls: seen; sample: [kept, in] in the input's dtype;
    keys: the draws that decide which rows stay, [kept].
    """

    positive: Tensor
    negative: Tensor
    square: Tensor
    rows: int
    calls: int
    sample: Tensor
    keys: Tensor


@dataclass(frozen=True)
class HeldOut:
    """One split: ranges of all other folds, and rows [n, in] of `calls` calls that they have not seen."""

    positive: Tensor
    negative: Tensor
    rows: Tensor
    calls: int = 1


@dataclass
class InputStats:
    """Running statistics of one linear's input; all tensors on the input's device."""

    name: str
    in_features: int
    reservoir: int = 512
    seed: int = 0
    keep_gram: bool = False
    folds: list[FoldStats | None] = field(default_factory=lambda: [None] * FOLDS)
    gram_sum: Tensor | None = None

    def __post_init__(self) -> None:
        seed = (self.seed * 0x9E3779B1 + zlib.crc32(self.name.encode())) & 0x7FFFFFFF
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def rows(self) -> int:
        """Rows seen."""
        return sum(fold.rows for fold in self.folds if fold is not None)

    @property
    def calls(self) -> int:
        """Calls seen. Rows of one call share a timestep, so this says how much is really known."""
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
    def gram(self) -> Tensor:
        """XᵀX over all rows, float64 [in, in]."""
        if self.gram_sum is None:
            raise QuantizationError(
                f"{self.name}: this method needs the Gram matrix of the layer's input, which was "
                "not collected; pass gram=True to observe"
            )
        return self.gram_sum

    def held_out(self, limit: int = 256, rows: int = 128, calls: int = 1) -> list[HeldOut]:
        """Splits to choose hyper-parameters on: one fold held out at a time, until there is enough.

        Layers with many rows thus use one split, layers with few (AdaLN sees one row per image) all of them.
        Empty if there are fewer than two folds with rows.

        Args:
            limit: most rows taken of one fold's sample.
            rows, calls: stop once this many rows, and rows from this many calls, are held out in all.
        """
        seen = self._seen()
        splits: list[HeldOut] = []
        if len(seen) < 2:
            return splits
        for fold in seen:
            others = [other for other in seen if other is not fold]
            splits.append(
                HeldOut(
                    torch.stack([other.positive for other in others]).amax(0),
                    torch.stack([other.negative for other in others]).amax(0),
                    fold.sample[:limit].float(),
                    fold.calls,
                )
            )
            if sum(len(s.rows) for s in splits) >= rows and sum(s.calls for s in splits) >= calls:
                break
        return splits

    def update(self, x: Tensor, fold: int | None) -> None:
        """Take in an input [..., in]; `fold` None deals its rows over all folds."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.shape[0] == 0:
            return
        if self.keep_gram:
            values = rows.float()
            product = (values.T @ values).double()
            self.gram_sum = product if self.gram_sum is None else self.gram_sum.add_(product)
        if fold is not None:
            self._update_fold(rows, fold)
            return
        for index, part in enumerate(rows.tensor_split(FOLDS)):
            if part.shape[0]:
                self._update_fold(part, index)

    def _update_fold(self, rows: Tensor, index: int) -> None:
        high, low = rows.amax(0).float(), rows.amin(0).float()
        square = rows.float().square().sum(0, dtype=torch.float64)
        keys = torch.rand(rows.shape[0], generator=self._generator)
        old = self.folds[index]
        if old is None:
            high, low, count = high.clamp_min(0), (-low).clamp_min(0), rows.shape[0]
            self.folds[index] = FoldStats(high, low, square, count, 1, *self._keep(rows, keys))
            return
        # torch.maximum carries NaN along, so one look at the end finds bad data
        old.positive = torch.maximum(old.positive, high)
        old.negative = torch.maximum(old.negative, -low)
        old.square += square
        old.rows += rows.shape[0]
        old.calls += 1
        rows, keys = self._keep(rows, keys)
        old.sample, old.keys = self._keep(torch.cat((old.sample, rows)), torch.cat((old.keys, keys)))

    def _keep(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The rows with the largest keys: a uniform sample without replacement, whatever the batching."""
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
        """Raise QuantizationError if NaN or inf went through this layer."""
        for fold in self.folds:
            if fold is not None and not bool(torch.isfinite(fold.square).all()):
                raise QuantizationError(
                    f"{self.name}: its calibration inputs contain NaN or inf (or overflow when "
                    "squared); check the model's dtype and the calibration data"
                )


def observe(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    gram: bool | Collection[str] = False,
    reservoir: int = 512,
    seed: int = 0,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> dict[str, InputStats]:
    """Statistics of the input of every nn.Linear, by module name, from one forward pass per batch.

    A linear that is called several times, or shared under several names, merges its calls under its first
    name; one that is never called has `rows == 0`.

    Args:
        model: runs as it is (device, dtype); in eval mode meanwhile, without gradients.
        batches: tuples or dicts of the forward's arguments (or a lone tensor).
        gram: collect XᵀX for all layers, none, or those named.
        reservoir: rows kept per layer.
        seed: of the reservoir and of the deal of batches to folds.
        only: names of the linears to watch; all if None.
        progress: called after every batch.
        total: number of batches for `progress`, where `batches` has no length.

    Raises:
        QuantizationError: no batches, or NaN or inf in some layer's input (named).
    """
    stats, handles, state = {}, [], {"fold": None}
    for name, module in linears(model).items():
        if only is not None and name not in only:
            continue
        keep = gram if isinstance(gram, bool) else name in gram
        stats[name] = InputStats(name, module.in_features, reservoir, seed, keep)
        handles.append(module.register_forward_pre_hook(_hook(stats[name], state), with_kwargs=True))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            _run(model, batches, state, seed, progress, total)
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    for entry in stats.values():
        entry.check_finite()
    return stats


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every nn.Linear by its first module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def call(model: nn.Module, batch: Any) -> Any:
    """Run the model on a dict of keyword arguments, a sequence of positional ones, or one tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Sequence):
        return model(*batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise QuantizationError(
        f"a calibration batch is a {type(batch).__name__}; yield a dict of the forward's keyword "
        "arguments, a tuple of its positional ones, or a tensor"
    )


def _hook(stats: InputStats, state: dict[str, int | None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stats.update(args[0] if args else kwargs["input"], state["fold"])

    return hook


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    state: dict[str, int | None],
    seed: int,
    progress: Progress | None,
    total: int,
) -> None:
    iterator = iter(batches)
    head = list(itertools.islice(iterator, 2))
    if not head:
        raise QuantizationError(
            "there are no calibration batches; give at least one (better more, to choose on some kept apart)"
        )
    total = len(batches) if hasattr(batches, "__len__") else total
    deal = _deal(seed) if len(head) > 1 else itertools.repeat(None)
    for index, (batch, fold) in enumerate(zip(itertools.chain(head, iterator), deal, strict=False)):
        state["fold"] = fold
        call(model, batch)
        if progress is not None:
            progress("observe", index + 1, total)


def _deal(seed: int) -> Iterator[int]:
    """Folds of consecutive batches, each run of FOLDS in random order: no fold sees a single timestep."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(FOLDS, generator=generator).tolist()
