"""`segquant-export`: settings, refusals, and a file."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segquant_bench import commands
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.export import cli
from segquant_bench.pipelines.export.cli import example_of, main, settings_of


def test_settings_have_defaults_and_are_checked() -> None:
    assert settings_of([]) == {
        "format": "onnx", "out": None, "profile": "ort", "dynamic": True, "every_cpu": True, "rest": "refuse",
        "external_data": None, "attention": "float", "batches": None,
    }  # fmt: skip
    assert settings_of(["format=onnx", "every_cpu=False", "out=here"])["every_cpu"] is False
    for pair, message in (
        ("profile", "'profile' sets nothing; give KEY=VALUE"),
        ("format=tensorrt", "no format 'tensorrt': it is a profile of ONNX; give format=onnx profile=tensorrt"),
        ("format=onyx", "no format 'onyx'; did you mean 'onnx'"),
        ("profil=ort", "format=onnx has no setting 'profil'; did you mean 'profile'"),
        ("attention=int8", "attention=int8 takes ranges from calls of the denoiser; give batches=FILE, which"),
        ("batches=calls.safetensors", "batches=FILE is read with attention=int8 alone; give both, or none"),
    ):
        with pytest.raises(PipelineError, match=message):
            settings_of([pair])


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "format=onnx"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("segquant-export: ") and "quantized.json" in told and told.count("\n") == 1


def test_a_place_that_refuses_is_told_with_the_commands_own_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(error: OSError) -> Callable[..., str]:
        def export(*_: object) -> str:
            raise error

        return export

    for error, said in (
        (PermissionError(errno.EACCES, "Permission denied", "/proc/x"), "choose another place with out=DIRECTORY\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space or set out=DIRECTORY on another disk\n"),
    ):
        monkeypatch.setattr(cli, "export", refuse(error))
        with pytest.raises(SystemExit):
            main([str(tmp_path), "out=/proc/x"])
        told = capsys.readouterr().err
        assert told.endswith(said) and "cache" not in told and "hydra" not in told


def test_help_names_every_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["segquant-export", "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.export()
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert all(f"  {key}=" in page for key in settings_of([]))


def test_the_example_has_two_of_a_batch_of_one() -> None:
    diffusers = pytest.importorskip("diffusers")
    size = {"sample_size": 8, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 24}
    model = diffusers.SD3Transformer2DModel(in_channels=4, out_channels=4, pos_embed_max_size=4, **size, **widths)
    shapes = {name: tuple(value.shape) for name, value in example_of(model).items() if isinstance(value, torch.Tensor)}
    assert shapes["hidden_states"] == (2, 4, 8, 8) and shapes["pooled_projections"] == (2, 24)
    assert shapes["encoder_hidden_states"][0] == shapes["timestep"][0] == 2


@pytest.mark.slow
def test_a_saved_model_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    import segquant.deploy.diffusers
    from tests.segquant.deploy.test_export import call
    from tests.segquant.sd3 import random_sd3

    model = segquant.quantize_(random_sd3(1, heads=2), segquant.presets.rtn("w8a8_dynamic"), [])
    segquant.save_quantized(model, tmp_path / "saved")
    main([str(tmp_path / "saved"), "profile=openvino", f"out={tmp_path / 'out'}"])
    assert "int8" in capsys.readouterr().out and (tmp_path / "out" / "model.onnx").is_file()
    file = segquant.deploy.diffusers.save_calibration([call(2, 8, 8, 7)], tmp_path / "calls.safetensors")
    main([str(tmp_path / "saved"), "profile=openvino", f"out={tmp_path / 'out'}", "attention=int8", f"batches={file}"])
    assert "attention: 1 int8" in capsys.readouterr().out
