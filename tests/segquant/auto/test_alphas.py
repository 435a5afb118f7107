"""auto searches α once: what it finds is in the plan, in what is kept, and with whoever solves the layer."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from segquant import (
    InputStats,
    Outcome,
    QuantizationError,
    QuantLinear,
    Segments,
    observe,
    presets,
    quantize_,
    quantize_with_outcome_,
)
from segquant.auto.budget import Candidate, Layer, Limits, compete
from segquant.auto.judge import Judge
from segquant.keep import Keeper
from segquant.method.plan_file import LayerPlan, read_plan, write_plan
from segquant.optimizers import search
from segquant.optimizers.scaling import SmoothQuant
from segquant.quantize import choose as choosing
from tests.segquant.support import BLOCK_SEGMENTS, Block, block_batches, tensor

SKIP = ("up", "out")
"""Left are a layer cut in three branches and one behind an activation."""


@cache
def statistics() -> dict[str, InputStats]:
    return observe(Block(), block_batches(12, seed=1), gram=True, split_gram=True)


@cache
def run() -> tuple[nn.Module, Outcome, dict[str, int]]:
    """A model, its outcome, and how often α was searched, by whether over all α."""
    model, calls = Block(), {"all": 0, "downhill": 0}
    own = search._by_alpha

    def counted(*args: Any, walks: bool = False, **kwargs: Any) -> Any:
        calls["downhill" if walks else "all"] += 1
        return own(*args, walks=walks, **kwargs)

    with patch.object(search, "_by_alpha", counted):
        outcome = _quantized(model)
    return model, outcome, calls


def _quantized(model: nn.Module, keep: Keeper | None = None) -> Outcome:
    method = presets.auto("w8a8_tensor", skip=SKIP)
    return quantize_with_outcome_(model, method, [], BLOCK_SEGMENTS, stats=statistics(), keep=keep)


def _same(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_no_layer_searches_for_what_its_choice_has_found() -> None:
    _, outcome, calls = run()
    assert calls["all"] == 0
    # by layer once for the rotated input, and once more where the other one was the better under rounding
    assert 2 <= calls["downhill"] <= 4
    tables = {entry.layer: entry.choice["alpha"] for entry in outcome.choices or () if "alpha" in entry.choice}
    assert {len(rows) for rows in tables.values()} <= {1, 3} and tables
    assert all(isinstance(row, list) for rows in tables.values() for row in rows)


def test_a_plan_of_alphas_makes_the_same_model(tmp_path: Path) -> None:
    model, outcome, _ = run()
    write_plan(tmp_path / "plan.json", presets.auto("w8a8_tensor", skip=SKIP), outcome.choices or ())
    with patch.object(search, "_by_alpha", side_effect=AssertionError("searched again")):
        again = quantize_(Block(), read_plan(tmp_path / "plan.json"), [], BLOCK_SEGMENTS, stats=statistics())
    _same(again, model)


def test_a_plan_from_before_there_were_tables_searches(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, presets.auto("w8a8"), [LayerPlan("ada", {"optimizer": "smooth", "seglinear": True}, gain=1.0)])
    content = json.loads(path.read_text())
    assert "alpha" not in content["layers"][0]["choice"]
    method = read_plan(path).for_layer("ada")
    assert method is not None and method.value("alpha") == search.SEARCH


def test_a_run_that_was_killed_behind_the_choice_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    model, outcome, _ = run()
    keep = Keeper(tmp_path / "kept")
    _quantized(Block(), keep)
    shutil.rmtree(keep.within("solve").folder)
    found = Block()
    with patch.object(choosing, "layer_candidates", side_effect=AssertionError("judged again")):
        again = _quantized(found, Keeper(tmp_path / "kept"))
    assert again.to_dict() == outcome.to_dict()
    _same(found, model)


@pytest.mark.parametrize("precision", ["w8a8_tensor", "w4a8_channel"])
def test_a_table_of_what_a_search_finds_is_that_search(precision: str) -> None:
    layer, segments, stats = Block().ada, BLOCK_SEGMENTS["ada"], statistics()["ada"]
    searching = presets.segquant_plus(precision).changed(optimizer="smooth")
    with patch("segquant.optimizers.scaling.find_scales", wraps=search.find_scales) as finding:
        found = QuantLinear.from_float(layer, searching, stats, segments)
    alphas = search.find_scales(*finding.call_args.args)[2]
    table = [[alphas[branch, 0]] for branch in range(3)]
    _same(QuantLinear.from_float(layer, searching.changed(alpha=table), stats, segments), found)
    other = [[None if row[0] is not None else 0.5] for row in table]
    assert not torch.equal(
        QuantLinear.from_float(layer, searching.changed(alpha=other), stats, segments).smooth, found.smooth
    )


def test_tables_that_fit_no_layer_are_refused() -> None:
    method = presets.smoothquant("w8a8", alpha=[[0.5], [0.5]])
    with pytest.raises(QuantizationError, match=r"up: alpha has rows of \[1, 1\] values.*1 x 1 blocks.*rows of \[1\]"):
        QuantLinear.from_float(Block().up, method, statistics()["up"], Segments(), name="up")
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\].*not 1\.5"):
        SmoothQuant([[0.5, None], [1.5, 0.0]])  # type: ignore[arg-type]
    assert SmoothQuant([[0.5, None]]) == SmoothQuant(((0.5, None),))  # type: ignore[arg-type]
    assert hash(SmoothQuant([[0.5, None]]))  # type: ignore[arg-type]


@pytest.mark.parametrize("best", [0, 3, 5, 10])
def test_downhill_ends_at_the_least_of_a_valley_and_tries_few(best: int) -> None:
    tried: list[float | None] = []

    class Valley(search._Search):
        def __init__(self) -> None:
            self.alphas = (None, *search.ALPHAS)

        def errors(self, margins: Any, alphas: Any = None) -> search.Errors:
            tried.extend(alphas)
            return {alpha: 99.0 if alpha is None else (alpha * 10 - best) ** 2 for alpha in alphas}

    assert search.best_alpha(Valley().downhill((1.0,))) == best / 10
    assert len(tried) == len(set(tried)) <= 4 + abs(best - 5) and None in tried


def test_folded_layers_keep_to_one_search() -> None:
    """They share a vector, whose α is not one layer's to choose."""
    base = presets.auto("w8a8_tensor", smoothing="fold_or_layer")
    judge = Judge(Block().down, base, statistics()["down"], BLOCK_SEGMENTS["down"], "down", frozenset(), once=True)
    found = judge({"optimizer": "smooth", "alpha": search.SEARCH, "calibrator": "amax"})
    assert found is not None and judge.told(found).change["alpha"] == search.SEARCH and not judge.alphas


def test_layers_are_weighed_only_where_they_compete() -> None:
    cheap, good = Candidate({}, 0.2, 10, 1.0, 8), Candidate({"rank": 1}, 0.1, 12, 1.0, 8)
    layers = [Layer(name, cheap, [cheap, good], 1) for name in ("a", "b")]
    assert [compete(layers, Limits(size, 2.0)) for size in (24, 23)] == [False, True]
    assert compete(layers, Limits(24, 1.9)) and not compete(layers, Limits(24, None))


@pytest.mark.parametrize("size, weighs", [(3.0, False), (1.0, True)])
def test_a_budget_that_nobody_exceeds_costs_no_passes(size: float, weighs: bool) -> None:
    pins = {"optimizer": "none", "calibrator": "amax", "alpha": 0.5, "rotate": False, "ranges": "amax"}
    method = presets.auto("w8a8_tensor", skip=SKIP, overrides={"down": pins, "ada": {**pins, "optimizer": "svd"}},
                          budget={"bytes": size, "operations": 3.0})  # fmt: skip
    with patch.object(choosing, "output_gains", wraps=choosing.output_gains) as passes:
        outcome = quantize_with_outcome_(Block(), method, block_batches(8, seed=1), BLOCK_SEGMENTS)
    assert passes.called == weighs
    assert all((entry.gain is not None) == weighs for entry in outcome.choices or ())


def test_a_branch_is_worth_what_it_is_under_rounding() -> None:
    stats = InputStats("0", 48, keep_gram=True, split_gram=True)
    for index in range(8):
        stats.update(tensor(3, 48, seed=index), index % 4)
    judge = Judge(nn.Linear(48, 32), presets.auto("w8a8"), stats, None, "0", frozenset(), once=True)
    *others, last = judge.methods(mixes=False)
    assert last.change["optimizer"] == "svd" and last.change["iterations"] == 1
    assert not any(candidate.change["optimizer"] == "svd" for candidate in others)
    best = min((c for c in others if not c.change["bias_correction"]), key=lambda c: c.error)
    rounded = {**best.change, "calibrator": "amax", "ranges": "amax"}
    pair = (
        judge({**rounded, **{k: last.change[k] for k in ("optimizer", "rank", "alpha")}, "iterations": 0}),
        judge(rounded),
    )
    assert pair[0] is not None and pair[1] is not None
    assert last.error == pytest.approx(best.error * pair[0].error / pair[1].error)
    assert last.bytes - best.bytes == pair[0].bytes - pair[1].bytes > 0
