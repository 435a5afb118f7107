"""One pass over the calibration inputs: running statistics of every linear's input.

Whole batches share a fold of `InputStats`, since rows of one denoiser call resemble each other; with a single
batch the rows themselves are dealt, in contiguous runs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segquant.errors import QuantizationError
from segquant.optimizers.balance import TemporalSalience
from segquant.stats import FOLDS, FoldStats, HeldOut, InputStats

log = logging.getLogger(__name__)

__all__ = ["FOLDS", "FoldStats", "HeldOut", "InputStats", "Progress", "call", "linears", "observe"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); total is 0 where it is not known."""


def observe(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    gram: bool | Collection[str] = False,
    split_gram: bool = False,
    salience: bool = False,
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
        split_gram: keep fold 0's share of XᵀX apart, for `InputStats.without_fold(0)`.
        salience: average the peaks of the channels over denoiser calls (`TemporalSalience`), an item of the
            input's first dimension at a time.
        reservoir: rows kept per layer.
        seed: of the reservoir and of the deal of batches to folds.
        only: names of the linears to watch; all if None.
        progress: called after every batch.
        total: number of batches for `progress`, where `batches` has no length.

    Raises:
        QuantizationError: no batches, or NaN or inf in some layer's input (named).
    """
    stats, peaks, handles, state = {}, {}, [], {"fold": None}
    for name, module in linears(model).items():
        if only is not None and name not in only:
            continue
        keep = gram if isinstance(gram, bool) else name in gram
        stats[name] = InputStats(name, module.in_features, reservoir, seed, keep, split_gram)
        peaks[name] = TemporalSalience(module.weight.abs().amax(0).float()) if salience else None
        hook = _hook(stats[name], peaks[name], state)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
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
    for name, entry in stats.items():
        entry.check_finite()
        found = peaks[name]
        entry.salience = found.value if found is not None and found.items else None
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


def _hook(
    stats: InputStats, peaks: TemporalSalience | None, state: dict[str, int | None]
) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        stats.update(x, state["fold"])
        if peaks is not None and x.numel():
            peaks.update(x.abs().reshape(*_items(x), x.shape[-1]).amax(1).float())

    return hook


def _items(x: Tensor) -> tuple[int, int]:
    """Items and rows of each in an input [items, ..., in]; a vector is one item of one row."""
    items = x.shape[0] if x.dim() > 1 else 1
    return items, x.numel() // (items * x.shape[-1])


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
