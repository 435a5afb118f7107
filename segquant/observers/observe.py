"""Statistics of every layer's input in one pass.

A batch goes to one fold, as its rows resemble each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from segquant.checks import checked
from segquant.errors import QuantizationError, nearest
from segquant.keep import Keeper
from segquant.modules.calls import Progress, batches_of, call
from segquant.modules.layers import quantizable, refuse_lazy, width_of
from segquant.modules.state import check_seed, own_state
from segquant.modules.swap import evaluating
from segquant.modules.tensors import device_of
from segquant.modules.wrappers import unwrapped
from segquant.observers.collector import Collector
from segquant.observers.snapshot import Snapshots
from segquant.observers.stats import FOLDS, InputStats


@dataclass(frozen=True)
class Observed:
    """Statistics after `passes` readings; `last`: there are no more.

    `waiting`: what is known of layers whose Gram matrix a later reading brings; not to be changed.
    """

    stats: dict[str, InputStats]
    passes: int
    last: bool
    waiting: Mapping[str, InputStats] = field(default_factory=dict)


@checked(gram="True, False or a list of layer names", only="a list of layer names")
@own_state()
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
    """Input statistics of every nn.Linear by module name, from one forward pass per batch.

    Of a convolution: of its patches. Shared layers merge under their first name; one never called has `rows == 0`.

    Args:
        model: runs as it is, in eval mode, without gradients or autocast.
        batches: the forward's arguments (tuple, dict or tensor). Batches of one origin, given by an attribute `origins`
            (a hashable per batch), share a fold.
        gram: collect XᵀX for all layers, none, or those named.
        split_gram: keep fold 0's XᵀX apart, for `InputStats.without_fold(0)`.
        salience: average channel peaks per item of the first dimension (`TemporalSalience`).
        reservoir: rows kept per layer.
        seed: of the reservoir and the folds.
        only: linears and ungrouped nn.Conv2d to observe; all linears if None.
        total: batches, if `batches` has no length.

    Raises:
        QuantizationError: no batches, or NaN or inf in a layer's input (named).
    """
    with unwrapped(model) as inner:
        (found,) = observe_in_groups(
            inner, batches, gram=gram, split_gram=split_gram, salience=salience, reservoir=reservoir, seed=seed,
            only=only, progress=progress, total=total,
        )  # fmt: skip
    return found.stats


def observe_in_groups(
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
    memory_limit: int | None = None,
    keep: Keeper | None = None,
) -> Iterator[Observed]:
    """`observe` in as many readings as Gram matrices within `memory_limit` need; the numbers are the same.

    The first group has all linears without a Gram matrix. Drop a group's statistics before asking for the next; do not
    change the model between.

    Args:
        batches: iterable more than once, unless one reading suffices.
        memory_limit: bytes for Gram matrices; None: no limit.
        keep: takes snapshots; a reading goes on behind the last one.

    Raises:
        QuantizationError: as `observe`; one matrix exceeds the limit; rereading is impossible or gives other data.
    """
    layers = quantizable(model, convolutions=only is not None)
    _check_names(layers, gram=() if isinstance(gram, bool) else gram, only=only or ())
    for name, layer in layers.items():
        refuse_lazy(layer, name)
    layers = {name: layer for name, layer in layers.items() if only is None or name in only}
    want = [name for name in layers if (gram if isinstance(gram, bool) else name in gram)]
    left = dict.fromkeys(want)
    collector = Collector({name: width_of(layer) for name, layer in layers.items()}, split_gram, reservoir, seed)
    if salience:
        collector.add_salience(layers)
    collector.check_limit(want, memory_limit)
    batches = batches_of(batches)
    check_seed(seed)
    again = iter(batches) is not batches
    for passes in itertools.count(1):
        collector.begin_pass(left, memory_limit, again)
        named = layers if passes == 1 else {name: layers[name] for name in left}
        snapshots = Snapshots(keep, passes, named, device_of(model))
        with _collecting(model, named, collector):
            _run(model, batches, collector, seed, progress, total, snapshots)
        collector.check_again()
        left = dict.fromkeys(name for name in left if name in collector.deferred)
        done = {name: collector.finish(name) for name in named if name not in left}
        found = Observed(done, passes, not left, {name: collector.so_far(name) for name in left})
        layers, named = {name: layers[name] for name in left}, {}  # no hold on what the caller may want to free
        del done
        yield found
        if not left:
            return


def _check_names(layers: Mapping[str, nn.Module], **given: Collection[str]) -> None:
    for what, names in given.items():
        for name in names:
            if name not in layers:
                hint = nearest(str(name), layers)
                raise QuantizationError(f"{what} names {name!r}, which is no layer of the model; {hint}")


@contextmanager
def _collecting(model: nn.Module, layers: Mapping[str, nn.Module], collector: Collector) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(collector.hook(name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    collector: Collector,
    seed: int,
    progress: Progress | None,
    total: int,
    snapshots: Snapshots,
) -> None:
    iterator = iter(batches)
    head = list(itertools.islice(iterator, 2))
    if not head:
        raise QuantizationError(
            "there are no calibration batches; give at least one (better more, to choose on some kept apart); a "
            "generator that was read before has none left"
        )
    total = len(batches) if isinstance(batches, Sized) else total
    deal = deal_folds(seed, getattr(batches, "origins", None)) if len(head) > 1 else itertools.repeat(None)
    known = snapshots.restore(collector)
    for index, (batch, fold) in enumerate(zip(itertools.chain(head, iterator), deal, strict=False)):
        if index >= known:
            collector.begin_call(fold)
            call(model, batch)
            snapshots.take(collector, index + 1, batches)
        if progress is not None:
            progress("observe", index + 1, total)


def deal_folds(seed: int, origins: Sequence[Hashable] | None) -> Iterator[int]:
    """Folds of consecutive batches, each run of FOLDS in random order; batches of one origin share a fold."""
    folds = _shuffled_folds(torch.Generator().manual_seed(seed))
    if origins is None:
        yield from folds
        return
    known: dict[Hashable, int] = {}
    for origin in origins:
        if origin not in known:
            known[origin] = next(folds)
        yield known[origin]


def _shuffled_folds(generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(FOLDS, generator=generator, dtype=torch.int64, device="cpu").tolist()
