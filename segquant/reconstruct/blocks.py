"""Block reconstruction: learn the rounding of a block's linears together (BRECQ, arXiv 2102.05426).

As in Q-Diffusion (arXiv 2302.04304, §4). A block is an entry of an nn.ModuleList that holds at least two quantized
linears and no smaller such entry; every other quantized linear is a block of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segquant.calibrators.adaround import learn_
from segquant.calibrators.reconstruction import Reconstruction
from segquant.keep import Keeper, Piece
from segquant.layers.layer import QuantLayer
from segquant.modules.calls import Progress
from segquant.modules.state import normal_weights
from segquant.modules.swap import evaluating, swapped
from segquant.modules.tensors import tensors_of
from segquant.reconstruct.calls import Call, call_order, collect_calls, copied, items_of, keep_batches
from segquant.reconstruct.soft_linear import SoftLinear

log = logging.getLogger(__name__)


@dataclass
class Block:
    """A module, and the (float, quantized) linears learnt with it."""

    name: str
    module: nn.Module
    pairs: list[tuple[nn.Module, QuantLayer]]


def reconstruct_(
    model: nn.Module,
    solved: Mapping[int, nn.Module],
    batches: Iterable[Any],
    settings: Reconstruction | None = None,
    *,
    learn: Collection[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Keeper | None = None,
) -> dict[str, float]:
    """Learn the rounding of quantized linears block by block; writes their codes, leaves the model as it is.

    Args:
        model: float model, in which nothing is swapped yet.
        solved: QuantLinear, rounded to nearest, by the id of its float linear.
        batches: as for `observe`; read once.
        learn: keys of `solved` that are learnt; all if None.
        keep: has blocks that were learnt before, and takes those that are.

    Returns:
        by block, the squared output error relative to rounding to nearest.

    Raises:
        QuantizationError: no batches.
    """
    settings = settings or Reconstruction()
    kept = keep_batches(batches, settings.rows, seed)
    chosen = {key: module for key, module in solved.items() if learn is None or key in learn}
    found: dict[str, float] = {}
    with evaluating(model), normal_weights(model):
        blocks = _in_order(model, find_blocks(model, chosen), kept)
        collected: dict[str, list[Call]] = {}
        before: dict[int, nn.Module] = {}
        for index, block in enumerate(blocks):
            known = None if keep is None else keep.get(f"block {block.name}")
            if known is not None:
                found[block.name] = _take_over(block, known)
            else:
                if block.name not in collected:
                    modules = {other.name: other.module for other in blocks[index:]}
                    collected = collect_calls(model, modules, kept, settings.memory_limit)
                calls = collected.pop(block.name)
                if settings.quantized_inputs and before:
                    calls = _with_inputs_of(model, before, block, calls, kept)
                found[block.name] = _reconstruct_block(block, solved, calls, settings, seed + index)
                if keep is not None:
                    keep.put(f"block {block.name}", _codes_of(block), found[block.name])
            log.debug("%s: %.3f of nearest rounding's error", block.name, found[block.name])
            before |= {id(linear): quantized for linear, quantized in block.pairs}
            if progress is not None:
                progress("reconstruct", index + 1, len(blocks))
    return found


def _codes_of(block: Block) -> dict[str, Tensor]:
    return {str(index): quantized.tensors()["codes"] for index, (_, quantized) in enumerate(block.pairs)}


def _take_over(block: Block, known: Piece) -> float:
    """Write the codes that were learnt before; the block's relative error then."""
    for index, (_, quantized) in enumerate(block.pairs):
        quantized.load_state_dict({**quantized.state_dict(), "codes": known.tensors[str(index)]})
    ratio: float = known.about
    return ratio


def find_blocks(model: nn.Module, solved: Mapping[int, nn.Module]) -> list[Block]:
    """Blocks by the rule above; a linear in several belongs to the first."""
    entries: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            for child_name, entry in module.named_children():
                inside = [id(child) for child in entry.modules() if id(child) in solved]
                if len(inside) > 1 and not isinstance(entry, nn.ModuleList):
                    entries[f"{name}.{child_name}".lstrip(".")] = inside
    whole = [n for n in entries if not any(other.startswith(f"{n}.") for other in entries)]
    linears = {id(m): (n, m) for n, m in reversed(list(model.named_modules())) if id(m) in solved}
    blocks = [Block(name, model.get_submodule(name), []) for name in whole]
    taken: set[int] = set()
    for block in blocks:
        for key in entries[block.name]:
            if key not in taken:
                block.pairs.append(_pair(linears[key][1], solved[key]))
                taken.add(key)
    left = [(name, module) for key, (name, module) in linears.items() if key not in taken]
    blocks += [Block(name, module, [_pair(module, solved[id(module)])]) for name, module in left]
    return [block for block in blocks if block.pairs]


def _pair(linear: nn.Module, quantized: nn.Module) -> tuple[nn.Module, QuantLayer]:
    assert isinstance(quantized, QuantLayer)
    return linear, quantized


def _in_order(model: nn.Module, blocks: list[Block], batches: Sequence[Any]) -> list[Block]:
    """Blocks in call order; one whose forward is bypassed is split."""
    order = call_order(model, batches, {id(block.module) for block in blocks})
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    found: list[Block] = []
    for block in blocks:
        if id(block.module) in order:
            found.append(block)
        else:
            found += [Block(names[id(pair[0])], pair[0], [pair]) for pair in block.pairs]
    uncalled = [block.name for block in found if id(block.module) not in order]
    if uncalled:
        log.warning("rounded to nearest, since the items kept for reconstruction never call them: %s", uncalled)
    called = [block for block in found if id(block.module) in order]
    return sorted(called, key=lambda block: order[id(block.module)])


def _with_inputs_of(
    model: nn.Module, before: Mapping[int, nn.Module], block: Block, calls: list[Call], kept: Sequence[Any]
) -> list[Call]:
    """The same calls, inputs coming from the blocks quantized so far."""
    with swapped(model, before):
        other = collect_calls(model, {block.name: block.module}, kept)[block.name]
    return [Call(new.args, new.kwargs, call.output) for new, call in zip(other, calls, strict=True)]


def _reconstruct_block(
    block: Block, solved: Mapping[int, nn.Module], calls: list[Call], settings: Reconstruction, seed: int
) -> float:
    """Learn and write one block's codes; returns its relative error."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(calls), generator=generator, dtype=torch.int64, device="cpu").tolist()
    apart = min(max(1, round(settings.held_out * len(calls))), len(calls) - 1) if settings.held_out else 0
    fit, judge = [calls[i] for i in order[apart:]], [calls[i] for i in order[: apart or None]]
    stand_ins = _stand_ins(block.module, solved)
    soft = [stand_ins[id(linear)] for linear, _ in block.pairs]
    with swapped(block.module, stand_ins) as module:
        units, base = _errors(module, fit), _errors(module, judge)
        if not any(base):
            return 1.0
        draw = _draws(fit, settings.batch, generator)

        def loss(weights: list[Tensor]) -> Tensor:
            for entry, weight in zip(soft, weights, strict=True):
                entry.current = weight
            drawn = next(draw)
            return torch.stack([_relative(_squares(module, call), units) for call in drawn]).mean()

        learn_([entry.rounding for entry in soft], loss, settings)
        for entry in soft:
            entry.current = entry.rounding.hard()
        ratio = float(_relative(torch.tensor(_errors(module, judge), dtype=torch.float64, device="cpu"), base))
    if ratio >= 1:
        return 1.0
    for entry, (_, quantized) in zip(soft, block.pairs, strict=True):
        quantized.load_state_dict({**quantized.state_dict(), "codes": entry.codes()})
    return ratio


def _stand_ins(module: nn.Module, solved: Mapping[int, nn.Module]) -> dict[int, SoftLinear]:
    inside = {id(child): child for child in module.modules() if id(child) in solved}
    return {key: SoftLinear(*_pair(child, solved[key])) for key, child in inside.items()}


def _draws(calls: Sequence[Call], items: int, generator: torch.Generator) -> Iterator[list[Call]]:
    """Calls of each step in random order, as many as hold `items` items."""
    drawn: list[Call] = []
    while True:
        for index in torch.randperm(len(calls), generator=generator, dtype=torch.int64, device="cpu").tolist():
            drawn.append(calls[index])
            if sum(items_of(call.output) for call in drawn) >= items:
                yield drawn
                drawn = []


def _squares(module: nn.Module, call: Call) -> Tensor:
    """Squared error of every output tensor of one call, [outputs]."""
    found = tensors_of(module(*copied(call.args), **copied(call.kwargs)))
    exact = tensors_of(call.output)
    return torch.stack([(a.float() - b.float()).square().sum() for a, b in zip(found, exact, strict=True)])


def _errors(module: nn.Module, calls: Sequence[Call]) -> list[float]:
    with torch.no_grad():
        return torch.stack([_squares(module, call).double() for call in calls]).mean(0).tolist()


def _relative(squares: Tensor, units: list[float]) -> Tensor:
    """Mean of squares / units over the outputs that rounding touches."""
    parts = [square / unit for square, unit in zip(squares.unbind(), units, strict=True) if unit > 0]
    return torch.stack(parts).mean()
