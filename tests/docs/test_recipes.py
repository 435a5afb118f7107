"""CONTRIBUTING's recipes work as they stand: files into a folder, then the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segquant.registry import SLOTS, table
from segquant_bench.eval.metrics.registry import METRICS
from tests.docs.pages import read
from tests.docs.recipes import Recipe, overrides, recipes
from tests.pipelines.conftest import Command, Tiny

SEAMS = {
    "A calibrator", "An optimizer", "A metric", "A stage", "A backend", "A logger", "A precision", "A model family",
    "A data set",
}  # fmt: skip
RECIPES = recipes(read("CONTRIBUTING.md"))


def test_every_seam_has_its_recipe() -> None:
    assert {recipe.name for recipe in RECIPES} == SEAMS
    assert all(recipe.commands for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_one_file_and_one_yaml(recipe: Recipe) -> None:
    """No recipe takes more; a table of data beside them does not count."""
    kinds = [Path(path).suffix for path in recipe.files]
    assert kinds.count(".py") <= 1 and kinds.count(".yaml") <= 1


def test_a_recipe_is_read() -> None:
    files = '```python title="p/a.py"\nX = 1\n```\n'
    text = f"# T\n\n## Add your own\n\n### A\n\n{files}\n```sh\nsegquant --config-dir c a=b\nls\n```\n"
    assert recipes(text) == [Recipe("A", {"p/a.py": "X = 1\n"}, ("segquant --config-dir c a=b",))]
    with pytest.raises(ValueError, match="twice"):
        recipes(text + '\n```python title="p/a.py"\n```\n')
    with pytest.raises(ValueError, match="not a path inside"):
        recipes(text.replace("p/a.py", "../a.py"))
    base = ["model=m", "model.path=p", "dataset=d"]
    assert overrides("segquant model=own x=1", base) == ["model=own", "x=1", "dataset=d"]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Afterwards no part and no metric of a recipe is known."""
    slots, metrics, modules = {slot: dict(table(slot)) for slot in SLOTS}, dict(METRICS), set(sys.modules)
    yield
    for known, before in [*((table(slot), slots[slot]) for slot in SLOTS), (METRICS, metrics)]:
        known.clear()
        known.update(before)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "my_package":
            del sys.modules[name]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_run(
    recipe: Recipe, command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    """Each command ends well; where the text's model is elsewhere, the tiny one stands in for it."""
    files = {path: text.replace("/data/my-sd3", str(tiny.model)) for path, text in recipe.files.items()}
    Recipe(recipe.name, files, ()).write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for line in recipe.commands:
        outcome = command(*overrides(line, tiny.overrides(tmp_path / "cache")))
        assert outcome.code == 0, outcome.err
        found = [json.loads(path.read_text()) for path in outcome.folder.rglob("results.json")]
        assert found and all(each["metrics"] for each in found)
        _check(recipe.name, {each["quantizer"]: each for each in found}, {each["precision"] for each in found})
        if recipe.name == "A stage":
            _check_stage(found[0], outcome.folder)
        if recipe.name == "A logger":
            told = (outcome.folder / "stages.txt").read_text().splitlines()
            assert told[0].endswith("begins") and told[-1] == "finished"
            assert [line.partition(":")[0] for line in told[1:-1]] == list(found[0]["stages"])


def _check(name: str, by_quantizer: dict[str, Any], precisions: set[str]) -> None:
    """That the run did what the recipe is about."""
    one = next(iter(by_quantizer.values()))
    if name == "A calibrator":
        assert by_quantizer["thrifty"]["layer_errors"] != by_quantizer["rtn"]["layer_errors"]
    elif name == "An optimizer":
        errors = {key: each["layer_errors"] for key, each in by_quantizer.items()}
        assert set(errors) == {"gptq", "in_order"} and errors["gptq"] != errors["in_order"]
    elif name == "A metric":
        worst = next(each for each in one["metrics"] if each["name"] == "worst_pixel")
        assert 0 < worst["value"] <= 255 and worst["unit"] == "of 255" and worst["n"] == one["n_images"]
    elif name == "A backend":
        assert one["backend"] == "halved" and set(one["backend_layers"]) == {"halved", "reference"}
    elif name == "A precision":
        assert precisions == {"w4a8", "w4g16a8"}
    else:
        assert name in ("A model family", "A data set", "A stage", "A logger")


def _check_stage(results: dict[str, Any], folder: Path) -> None:
    path = folder / results["stages"]["sharpness"]["path"]
    values = json.loads((path / "sharpness.json").read_text())
    assert len(values) == results["n_images"] and all(0 < value < 1 for value in values)
