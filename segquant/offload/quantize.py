"""Quantize block by block, with one block's float weights in memory and one reading of the data.

All batches run in lockstep. When all wait at a block, it is brought in, observed and quantized.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from segquant.errors import QuantizationError
from segquant.graph.find import find_segments
from segquant.graph.segments import Segments
from segquant.keep import Keeper
from segquant.layers.saving import refuse_save_pretrained_
from segquant.layers.state_dict import tell_weights_
from segquant.method.spec import Method
from segquant.method.targets import layer_methods, refuse_unmatched, targets
from segquant.modules.calls import Progress, arguments, batches_of, run
from segquant.modules.layers import quantizable, width_of
from segquant.modules.state import own_random, own_state
from segquant.modules.swap import swap_
from segquant.observers.collector import Collector
from segquant.observers.observe import deal_folds
from segquant.offload.block_shell import BatchIndices, BlockRunner, stray_blocks
from segquant.offload.kept import is_begun, keep_block, kept_block
from segquant.offload.lockstep import Walker, common_gate, gated
from segquant.offload.weights import Offloaded
from segquant.quantize.batches import arguments_of
from segquant.quantize.outcome import Outcome
from segquant.quantize.run import quantize_with_outcome_

log = logging.getLogger(__name__)


def quantize_offloaded_(
    offloaded: Offloaded,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    progress: Progress | None = None,
    memory_limit: int | None = None,
    park: torch.device | str = "cpu",
) -> nn.Module:
    """`quantize_offloaded_with_outcome_`, returning the model."""
    quantize_offloaded_with_outcome_(
        offloaded, method, batches, segments, progress=progress, memory_limit=memory_limit, park=park
    )
    return offloaded.model


@own_state()
def quantize_offloaded_with_outcome_(
    offloaded: Offloaded,
    method: Method,
    batches: Iterable[Any],
    segments: Mapping[str, Segments] | None = None,
    *,
    progress: Progress | None = None,
    memory_limit: int | None = None,
    park: torch.device | str = "cpu",
    keep: Keeper | None = None,
) -> Outcome:
    """`quantize_` of a model whose blocks are read one by one; the layers come out the same.

    Args:
        offloaded: afterwards all of it is in memory, quantized, in eval mode.
        method: without a budget (`auto`) or block reconstruction.
        batches: read once; all their activations are in memory together.
        progress: called with ("quantize", layers done, layers in all).
        memory_limit: bytes for Gram matrices per block; for the rest the block is run again.
        park: device of finished blocks; what is in no block stays.
        keep: takes layers as they are solved. The same call after a kill runs finished blocks again, for their
            outputs, and solves the rest.

    Raises:
        QuantizationError: as `quantize_`; the method needs the whole model; batches take different ways.
    """
    model, origins = offloaded.model, getattr(batches, "origins", None)
    model.eval()
    refuse_unmatched(model, method)
    layers = targets(model, method)
    if not layers and method.scheme.weight is None:
        return Outcome(method)
    methods, names = layer_methods(layers, method), list(layers)
    del layers  # or float layers stayed in memory after they are replaced
    batches = list(batches_of(batches))
    _check(method, methods, batches)
    if segments is None and any(entry.cuts.wants_graph for entry in methods.values()):
        segments = find_segments(model, *arguments_of(batches[0]))
    for name in stray_blocks(model, list(offloaded.waiting), batches[0]):
        log.info("%s stays in memory: it is not called just once, or parts of it are called from elsewhere", name)
        offloaded.bring(name)
        offloaded.keep(name)
    run = _Run(offloaded, method, methods, dict(segments or {}), progress, memory_limit, torch.device(park), keep)
    run.through(batches, origins)
    run.rest()
    tell_weights_(refuse_save_pretrained_(model))
    found = {name: run.cuts[name] for name in names if name in run.cuts}
    return Outcome(method, found, run.passes)


def _check(method: Method, methods: Mapping[str, Method], batches: Sequence[Any]) -> None:
    if not batches:
        raise QuantizationError("there are no calibration batches; give at least one")
    for entry in methods.values():
        if entry.folds:
            raise QuantizationError(
                f"smoothing={entry.cuts.smoothing!r} changes layers before those that it smooths, which needs the "
                "whole float model in memory; quantize without offloading, or choose smoothing='layer'"
            )
        if entry.budget is not None or "second_pass" in entry.calibrator.needs:
            what = "a budget over all layers" if entry.budget is not None else "block reconstruction"
            raise QuantizationError(
                f"method {method.name!r} has {what}, which needs the whole float model in memory; quantize without "
                "offloading, or take another method"
            )


class _Run:
    def __init__(
        self,
        offloaded: Offloaded,
        method: Method,
        methods: Mapping[str, Method],
        segments: dict[str, Segments],
        progress: Progress | None,
        memory_limit: int | None,
        park: torch.device,
        keep: Keeper | None,
    ) -> None:
        self.offloaded, self.method, self.methods, self.segments = offloaded, method, methods, segments
        self.progress, self.memory_limit, self.park = progress, memory_limit, park
        self.keep = keep
        self.cuts: dict[str, Segments] = {}
        self.passes, self.done = 0, 0
        self._collectors: dict[str, Collector] = {}
        self._outside: list[str] = []

    def through(self, batches: list[Any], origins: Sequence[Any] | None) -> None:
        model = self.offloaded.model
        deal = deal_folds(self.method.seed, origins) if len(batches) > 1 else itertools.repeat(None)
        folds = list(itertools.islice(deal, len(batches)))
        runs = [functools.partial(run, model, *arguments(batch)) for batch in batches]
        walkers = [Walker(entry, index) for index, entry in enumerate(runs)]
        runs.clear()
        batches.clear()
        with own_random(model), self._collecting(), gated(dict(self.offloaded.waiting)) as open_gate:
            try:
                outputs: list[Any] = [None] * len(walkers)
                while True:
                    self._advance(walkers, outputs, folds)
                    name = common_gate(walkers)
                    if name is None:
                        return
                    open_gate(name)
                    outputs = self._block(name, [walker.arguments for walker in walkers], origins)
            finally:
                for walker in walkers:
                    walker.abandon()

    def _advance(self, walkers: list[Walker], outputs: list[Any], folds: list[int | None]) -> None:
        for index, walker in enumerate(walkers):
            for collector in self._collectors.values():
                collector.begin_call(folds[index])
            output, outputs[index], walker.arguments = outputs[index], None, ((), {})
            walker.advance(output)

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        inside = {id(part) for block in self.offloaded.waiting.values() for part in block.modules()}
        handles = []
        layers = quantizable(self.offloaded.model, self.method.targets.convolutions)
        layers = {name: layer for name, layer in layers.items() if id(layer) not in inside}  # no hold on the others
        self._outside = list(layers)
        if any(entry.needs for entry in self.methods.values()):
            for name, layer in layers.items():
                if name not in self.methods:
                    continue
                collector = self._collectors[name] = Collector({name: width_of(layer)}, False, 512, self.method.seed)
                if "salience" in self.methods[name].needs:
                    collector.add_salience({name: layer})
                collector.begin_pass([name] if "gram" in self.methods[name].needs else [], None, True)
                handles.append(layer.register_forward_pre_hook(collector.hook(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _block(self, name: str, inputs: list[Any], origins: Sequence[Any] | None) -> list[Any]:
        block = self.offloaded.bring(name)
        shell = BlockRunner(name, block, inputs)
        names = list(targets(shell, self.method))
        if names:
            keep = None if self.keep is None else self.keep.within(name)
            if not self._take_over(shell, names, keep):
                if is_begun(keep):
                    shell.fill()  # while it is in float
                self._quantize(shell, names, BatchIndices(len(inputs), origins), keep=keep)
            swap_(self.offloaded.model, {id(block): shell.get_submodule(name)})  # a block that is itself a layer
        else:
            shell.fill()
        self.offloaded.keep(name)
        shell.get_submodule(name).to(self.park)
        return shell.outputs

    def _take_over(self, shell: BlockRunner, names: Sequence[str], keep: Keeper | None) -> bool:
        """Put in the layers of a block that a run before had finished; whether there were all."""
        found = None if keep is None else kept_block(keep, shell)
        if found is None:
            return False
        shell.fill()
        swap_(shell, found.layers)
        self._count(names, found.segments, found.passes)
        return True

    def _quantize(
        self,
        model: nn.Module,
        names: Sequence[str],
        batches: Iterable[Any],
        skip: Sequence[str] = (),
        keep: Keeper | None = None,
        **given: Any,
    ) -> None:
        overrides = _matching(self.method, list(quantizable(model, self.method.targets.convolutions)))
        known = list(quantizable(model))
        globs = [glob for glob in self.method.targets.skip if any(fnmatch.fnmatchcase(name, glob) for name in known)]
        method = self.method.changed(overrides=overrides, skip=(*globs, *skip))
        if isinstance(model, BlockRunner) and not any(self.methods[name].needs for name in names):
            model.fill()
        outcome = quantize_with_outcome_(
            model, method, batches, self.segments, progress=self._counted(names), memory_limit=self.memory_limit,
            streaming=True, keep=keep, **given,
        )  # fmt: skip
        if keep is not None:
            keep_block(keep, model, names, outcome)
        self._count(names, outcome.segments, outcome.passes)

    def _count(self, names: Sequence[str], segments: Mapping[str, Segments], passes: int) -> None:
        self.cuts |= segments
        self.passes = max(self.passes, passes)
        self.done += len(names)

    def _counted(self, names: Sequence[str]) -> Progress | None:
        if self.progress is None:
            return None
        report, before, whole = self.progress, self.done, len(self.methods)

        def progress(stage: str, done: int, _: int) -> None:
            if stage == "quantize":
                report(stage, before + done, whole)

        return progress

    def rest(self) -> None:
        names = [name for name in self._outside if name in self.methods]
        if not names:
            return
        stats = {name: collector.finish(name) for name, collector in self._collectors.items()}
        self._collectors.clear()
        left = [name for name in targets(self.offloaded.model, self.method) if name not in names]  # never called
        keep = None if self.keep is None else self.keep.within("")  # no block's name
        self._quantize(self.offloaded.model, names, [], stats=stats, skip=left, keep=keep)


def _matching(method: Method, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(pair for pair in method.targets.overrides if any(fnmatch.fnmatchcase(name, pair[0]) for name in names))
