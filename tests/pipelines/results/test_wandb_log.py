"""W&B: what an offline run holds, read back from its file; and runs without wandb."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segquant_bench.pipelines.results.wandb_mode import resolve_mode
from tests.pipelines.conftest import Command, Tiny

BLOCK, HEADER = 32768, 7


def _records(path: Path) -> Iterator[bytes]:
    """Records of a .wandb file: 7 bytes, then a LevelDB log (checksum, length, type; blocks of 32 KiB)."""
    raw, position, parts = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(raw):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, position)
        data = raw[position + HEADER : position + HEADER + length]
        position += HEADER + length
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield parts


def _read(folder: Path, patience: float = 60.0) -> dict:
    """`_read_now` once the file is complete: wandb's service may still be writing when the run has finished."""
    deadline = time.monotonic() + patience
    while True:
        found = _read_now(folder)
        if ("run" in found and found["history"] and found["artifacts"]) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _read_now(folder: Path) -> dict:
    """Config, summary, history and artifacts of the one offline run below `folder`."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found: dict = {"config": {}, "history": {}, "artifacts": []}
    for data in _records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            found["run"] = record.run
            found["config"].update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        if record.HasField("history"):
            items = record.history.item
            found["history"].update(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
        if record.HasField("request") and record.request.HasField("log_artifact"):
            found["artifacts"].append(record.request.log_artifact.artifact)
        if record.HasField("artifact"):
            found["artifacts"].append(record.artifact)
    return found


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_offline_run_holds_everything(command: Command, tiny: Tiny, cache: Path) -> None:
    outcome = command(*tiny.overrides(cache), "quantizer=rtn", "logger=wandb", "logger.group=a sweep")
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    found = _read(outcome.folder)
    assert (found["run"].run_group, found["run"].project) == ("a sweep", "segquant")
    assert (found["run"].display_name, found["run"].job_type) == ("tiny_random rtn_w8a8_tensor", "rtn")
    assert found["config"]["quantizer"]["_target_"] == "segquant.presets.rtn"
    assert found["config"]["config_hash"] == results["config_hash"]
    history = found["history"]
    for metric in results["metrics"]:
        assert history[f"metric/{metric['name']}"] == pytest.approx(metric["value"])
    for name, stage in results["stages"].items():
        assert history[f"stage/{name}/seconds"] == pytest.approx(stage["seconds"])
    assert history["layer_errors/_type"] == "table-file"
    assert history["layer_errors/nrows"] == len(results["layer_errors"])
    assert history["images/count"] == 4
    models = [artifact for artifact in found["artifacts"] if artifact.type == "model"]
    assert models and "tiny_random-rtn_w8a8_tensor" in models[0].name
    names = {entry.path for entry in models[0].manifest.contents}
    assert any(name.endswith(".safetensors") for name in names)


def test_components_and_corrections_are_logged(command: Command, tiny: Tiny, cache: Path) -> None:
    """Their names have characters that W&B's artifacts do not take."""
    more = ["quantizer=rtn", "correction=affine", "quantize=[denoiser,text_encoder]"]
    outcome = command(*tiny.overrides(cache), "logger=wandb", *more)
    assert outcome.code == 0, outcome.err
    results = json.loads((outcome.folder / "results.json").read_text())
    assert results["name"] == "rtn+affine+text_encoder_w8a8_tensor"
    found = _read(outcome.folder)
    (model,) = {a.name: a for a in found["artifacts"] if a.type == "model"}.values()
    assert model.name.endswith("tiny_random-rtn-affine-text_encoder_w8a8_tensor")
    names = {entry.path for entry in model.manifest.contents}
    assert {"correction.json", "text_encoder/quantized.json"} <= names and "quantized.json" in names
    encoder = results["components"]["text_encoder"]["layer_errors"]
    assert found["history"]["layer_errors/nrows"] == len(results["layer_errors"]) + len(encoder)


def test_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert resolve_mode("auto") == "online" and resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / "netrc").chmod(0o600)
    assert resolve_mode("auto") == "online"


def test_without_wandb_installed(command: Command, tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb", None)  # any import of it fails, and find_spec says None
    outcome = command(*tiny.overrides(cache), "quantizer=none", "logger=wandb")
    assert outcome.code == 1 and "pip install wandb" in outcome.sentence
    outcome = command(*tiny.overrides(cache), "quantizer=none", "logger=none")
    assert outcome.code == 0, outcome.err
