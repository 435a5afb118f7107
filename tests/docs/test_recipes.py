"""CONTRIBUTING's recipes work as they stand: files into a folder, then the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.docs.pages import read
from tests.docs.recipes import Recipe, overrides, recipes
from tests.pipelines.conftest import Command, Tiny

SEAMS = {
    "A calibrator", "An optimizer", "A metric", "A stage", "A backend", "A precision", "A model family", "A data set",
}  # fmt: skip
RECIPES = recipes(read("CONTRIBUTING.md"))
RUNNING = [recipe for recipe in RECIPES if recipe.commands]


def test_every_seam_has_its_recipe() -> None:
    assert {recipe.name for recipe in RECIPES} == SEAMS
    assert {"A model family", "A data set"} <= {recipe.name for recipe in RUNNING}


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


@pytest.mark.parametrize("recipe", RUNNING, ids=lambda recipe: recipe.name)
def test_recipes_run(
    recipe: Recipe, command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command ends well; where the text's model is elsewhere, the tiny one stands in for it."""
    files = {path: text.replace("/data/my-sd3", str(tiny.model)) for path, text in recipe.files.items()}
    Recipe(recipe.name, files, ()).write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    for line in recipe.commands:
        outcome = command(*overrides(line, tiny.overrides(tmp_path / "cache")))
        assert outcome.code == 0, outcome.err
        for path in outcome.folder.rglob("results.json"):
            assert json.loads(path.read_text())["metrics"]
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {Path(path).parts[0] for path in recipe.files}:
            del sys.modules[name]
