"""Every key that runs write to results.json is refused by its name where it holds another type."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import pytest

from segquant_bench.eval import EvalError, load_result
from segquant_bench.pipelines.results import write as writer
from tests.eval.test_broken_files import Keys, changed, places, whole_record, write


def written_record() -> dict[str, Any]:
    """With the keys of all engines, of a correction and of a measured speed."""
    raw = whole_record()
    summary = {"mean": 0.1, "median": 0.1, "geometric_mean": 0.1, "n": 3}
    raw |= {"model_fingerprint": "1f2e", "layer_error": summary, "backend": "reference"}
    raw["components"]["text_encoder"]["layer_error"] = summary
    raw["own_code"] = {"quantizer._target_": {"path": "own.method", "code": "1f"}}
    hashes = dict.fromkeys(("evaluation_hash", "calibration_hash", "held_out_hash"), "1f")
    raw["subset"] = {"name": "emoji", "n": 2, "of": 9, "draw": "permutation", "seed": 0, **hashes}
    raw["run"] = {"name": "auto", "engine": "cpu", "reason": "", "fallback": "reference", "attention": "int8"}
    raw["run"] |= {"rest": "refuse", "every_cpu": False, "bfloat16": False, "threads": 2, "file_bytes": 9, "remark": ""}
    raw["run"] |= {"products": {"int8": 3}, "compiled": {"Block": 6}, "graph_breaks": 0}
    raw["run"] |= {"layers": {"up": "cpu"}, "reasons": {"up": "too small"}}
    way = dict.fromkeys(("seconds_per_step", "seconds_per_step_minimum", "seconds_per_call", "speed"), 0.5)
    way |= {"forward_mb": 1.0, "weights_mb": 1.0, "every": [0.5], "n": 1}
    raw["speed"] = {"measured": {"run": way}, "processor": "x", "threads": 2, "batch_size": 4, "calls_per_step": 1}
    raw["speed"] |= {"step_error": 0.01, "file_bytes": 9}
    raw["correction"] = {"name": "affine", "method": "affine", "prompts": 4, "trajectory": "x", "scheduler": "x"}
    raw["correction"] |= {"guidance_weights": [1.0], "noise": "x"}
    raw["correction"] |= {"prediction_error": [0.1], "prediction_error_corrected": [0.1]}
    raw["device"] = {"name": "x", "type": "cpu", "machine": "x", "system": "x", "cpu_capability": "x"}
    raw["device"] |= {"cpus": 2, "threads": 2, "accelerator": "x"}
    raw["stages"]["quantize"]["peak_device_memory_mb"] = 1.0
    return raw


def _is_free(keys: Keys) -> bool:
    """Whether readers take anything there: parts of the configuration, and pieces of cuts."""
    return keys[0] == "config" or (keys[0] == "statistics" and keys[-1] == 0 and keys[-2] in ("output", "input"))


def test_every_key_of_another_type(tmp_path: Path) -> None:
    raw, path = written_record(), tmp_path / "results.json"
    load_result(write(path, copy.deepcopy(raw)))
    taken = []
    for keys in places(raw):
        held: Any = raw
        for key in keys:
            held = held[key]
        if not _is_free(keys):
            write(path, changed(raw, keys, -1 if isinstance(held, str) or held is None else "zz"))
            try:
                load_result(path)
            except EvalError as error:
                assert str(keys[-1]) in str(error) or keys[-1] == 0, error
            else:
                taken.append(keys)
    assert not taken


def test_a_quantizer_has_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "results.json", written_record() | {"quantizer": ""})
    with pytest.raises(EvalError, match='holds quantizer = "", which must be a text, not an empty one'):
        load_result(path)


def test_the_record_has_every_key_that_runs_write() -> None:
    tree = ast.parse(Path(writer.__file__).read_text(encoding="utf-8"))
    (built,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build_results"]
    returned = built.body[-1]
    assert isinstance(returned, ast.Return) and isinstance(returned.value, ast.Dict)
    keys = {key.value for key in returned.value.keys if isinstance(key, ast.Constant)}
    assert len(keys) > 20 and keys <= written_record().keys()
