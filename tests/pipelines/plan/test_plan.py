"""A run of quantizer=auto leaves its plan; quantizer=plan runs it again, as it is or edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.pipelines.conftest import Command, Tiny, compose_config

LAYER = "transformer_blocks.0.ff.net.2"
OTHERS = ("[!t]*", "time*", "transformer_blocks.[!0]*", "transformer_blocks.0.[!f]*", "*.ff_context.*", "*.ff.net.0*")
REST = f"quantizer.skip=[{','.join(repr(pattern) for pattern in OTHERS)}]"


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_auto_leaves_its_plan_and_it_runs_again(command: Command, tiny: Tiny, cache: Path, tmp_path: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=auto", REST)
    assert outcome.code == 0, outcome.err
    first = _results(outcome.folder)
    assert first["artifacts"]["plan"] == "plan.json"
    content = json.loads((outcome.folder / "plan.json").read_text())
    assert [entry["layer"] for entry in content["layers"]] == list(first["layer_errors"]) == [LAYER]
    (stage,) = (cache / "stage").glob("quantize-*[0-9a-f]")
    assert (stage / "plan.json").read_bytes() == (outcome.folder / "plan.json").read_bytes()
    assert not (stage / "plan.json").samefile(outcome.folder / "plan.json"), "an edit must not reach the cache"

    plan = shutil.copy(outcome.folder / "plan.json", tmp_path / "mine.json")
    shutil.rmtree(outcome.folder)
    outcome = command(*tiny.overrides(cache), "quantizer=plan", f"quantizer.path={plan}")
    assert outcome.code == 0, outcome.err
    again = _results(outcome.folder)
    for key in ("layer_errors", "metrics", "output_error", "weight_bytes"):
        assert again[key] == first[key]
    assert again["quantizer"] == "plan" and "plan" not in again["artifacts"]


def test_the_hash_follows_the_plans_content_and_not_its_place(tmp_path: Path) -> None:
    from segquant_bench.pipelines.config.run_hash import config_hash
    from segquant_bench.pipelines.config.schema import validate

    def hash_of(path: Path) -> str:
        return config_hash(validate(compose_config(["quantizer=plan", f"quantizer.path={path}"])), "model", {})

    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, text in zip(paths, ("one", "one", "two"), strict=True):
        path.write_text(text)
    hashes = [hash_of(path) for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]
