"""Which smoothing vectors fold into the norm, AdaLN or linear before, and the vectors."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segquant.graph.producers import Producer, Rows
from segquant.graph.segments import Segments
from segquant.method.spec import Method
from segquant.modules.layers import as_linear, taps_of
from segquant.numerics.layout import Layout
from segquant.observers.stats import InputStats
from segquant.optimizers.protocol import Fitted
from segquant.solve.folding import DividedRows, LayerFold, divided, with_divided_rows
from segquant.solve.layer import problem_of
from segquant.solve.which_fold import layout_of, left_alone, plan_folds
from segquant.transforms.smoothing import Smoothing

log = logging.getLogger(__name__)


class Folds:
    """Of one model's layers; decided once their statistics are there, before any is solved.

    Attributes:
        methods: by layer; those without a fold are not smoothed where their method says "fold".
        layers: what folding changes, by layer.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Mapping[str, Method],
        layers: Mapping[str, nn.Module],
        producers: Sequence[Producer],
        segments: Mapping[str, Segments],
    ) -> None:
        self.model, self._given, self._modules, self._segments = model, methods, dict(layers), segments
        known = _own_parameters(model) if producers else set()
        self.producers = [
            producer
            for producer in plan_folds(producers, methods, layers, segments)
            if all(rows.parameter in known for rows in producer.rows)
        ]
        self.methods = dict(methods)
        self.layers: dict[str, LayerFold] = {}
        self._vectors: list[tuple[Rows, Tensor]] = []
        self._decided = False

    def decide(self, stats: Mapping[str, InputStats]) -> None:
        """Choose all vectors, from layers' inputs and weights; later calls change nothing."""
        if self._decided:
            return
        self._decided = True
        folded = []
        for producer in reversed(self.producers):  # what a reader's rows are divided by counts in its own vector
            seen = [stats.get(name) for name in producer.readers]
            if all(entry is not None and entry.rows for entry in seen):
                self._fold(producer, seen[0])
                folded.append(producer)
        self.producers = folded[::-1]
        for name, method in self._given.items():
            if self.fold_of(name).shared is None:
                self.methods[name] = left_alone(method)
        self._modules.clear()  # no hold on what streaming frees
        self._tell()

    @property
    def folded(self) -> tuple[str, ...]:
        """Layers whose input comes divided."""
        return tuple(name for producer in self.producers for name in producer.readers) if self._decided else ()

    def fold_of(self, name: str) -> LayerFold:
        return self.layers.get(name, LayerFold())

    def _tell(self) -> None:
        wanted = sum(method.folds for method in self._given.values())
        done = sum(len(producer.readers) for producer in self.producers)
        if wanted:
            log.info(
                "smoothing of %d of %d layers is folded into %d norms and linears before them",
                done,
                wanted,
                len(self.producers),
            )

    def _layout(self, name: str) -> Layout:
        return layout_of(self._modules[name], self._given[name], self._segments, name)

    def _fold(self, producer: Producer, stats: InputStats | None) -> None:
        fitted = self._fit(producer.readers, stats)
        for name in producer.readers:
            self.layers[name] = replace(self.fold_of(name), shared=fitted)
        taps = taps_of(self._modules[producer.readers[0]])
        vector = fitted.tensors["smooth"][0][::taps]
        for rows in producer.rows:
            self._vectors.append((rows, vector))
            owner, _, key = rows.parameter.rpartition(".")
            if owner in self._given and key == "weight":
                bias = f"{owner}.bias"
                added = next((r.plus for r in producer.rows if r.parameter == bias and r.start == rows.start), 0.0)
                part = DividedRows(rows.start, rows.stop, added, vector)
                self.layers[owner] = replace(self.fold_of(owner), rows=(*self.fold_of(owner).rows, part))

    def _fit(self, names: Sequence[str], stats: InputStats | None) -> Fitted:
        """Their vector, as of one layer with the outputs of all; largest entry in (½, 1], see `_scaled`."""
        method = self._given[names[0]]
        weights = [self._weight(name) for name in names]
        layouts = [self._layout(name) for name in names]
        total = sum(layout.out_features for layout in layouts)
        rows = tuple(size for layout in layouts for size in layout.rows)
        layout = replace(layouts[0], out_features=total, rows=rows, branches=(total,), bias=False)
        fitted = method.optimizer.fit(problem_of(torch.cat(weights), layout, stats, method, names[0]))
        vector = fitted.tensors.get("smooth")
        if vector is None:
            vector = torch.ones(1, layout.in_features, dtype=torch.float32, device=weights[0].device)
        return Fitted((Smoothing(),), {"smooth": _scaled(vector)}, fitted.margin, fitted.found)

    def _weight(self, name: str) -> Tensor:
        linear = with_divided_rows(as_linear(self._modules[name]), self.fold_of(name).rows)
        return linear.weight.detach().float()

    def apply_(self, quantized: Sequence[str]) -> None:
        """Change parameters of what stays in float; `quantized` layers were made so."""
        parts: dict[str, list[tuple[Rows, Tensor]]] = {}
        for rows, vector in self._vectors:
            if rows.parameter.rpartition(".")[0] not in quantized:
                parts.setdefault(rows.parameter, []).append((rows, vector))
        for name, entries in parts.items():
            owner, _, key = name.rpartition(".")
            module = self.model.get_submodule(owner)
            old: Any = module._parameters[key]
            new = old.detach().clone(memory_format=torch.contiguous_format)
            for rows, vector in entries:
                flat = new.view(-1, rows.width)
                flat[rows.start : rows.stop] = divided(flat[rows.start : rows.stop], rows.plus, vector.to(new.device))
            module._parameters[key] = nn.Parameter(new, requires_grad=old.requires_grad)


def _own_parameters(model: nn.Module) -> set[str]:
    """Names of parameters with values, that have no other name."""
    named = list(model.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in named)
    return {
        name
        for name, parameter in named
        if count[id(parameter)] == 1 and parameter.device.type != "meta" and parameter.is_floating_point()
    }


def _scaled(vector: Tensor) -> Tensor:
    """The vector times a power of two, its largest entry in (½, 1].

    A factor for all channels changes no code. With entries of at most 1 the 1 + scale of an AdaLN only grows: in half
    precision, scale would lose its digits close to −1.
    """
    return vector * float(2.0 ** -int(vector.amax().log2().ceil()))
