"""What a command line ends in that cannot be composed: one sentence about the key that was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from segquant_bench.pipelines.config.arguments import check_environment
from segquant_bench.pipelines.errors import PipelineError
from tests.pipelines.conftest import Command

TARGET = "quantizer._target_"
LOCAL = "is an address, and only local files are read; download it, and give its path"
PATH = "is no dotted path of a function; give for example quantizer._target_=their_pkg.module.function"
PART = "is of a part that the model has not: model.parts takes one whole; write 'model.parts={transformer: "


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("model.parts.transformer.path=/nope", f"model.parts.transformer.path {PART}{{kind: CLASS, path: /nope}}}}', "),
        ("+model.parts.transformer.kind=Kind", f"model.parts.transformer.kind {PART}{{kind: Kind, path: DIR"),
        ("+model.parts.transformer={kind: Kind, path: /a}", f"model.parts.transformer {PART}{{kind: Kind, path: /a"),
        ("model.parts.transformer.pth=/nope", "there is no key 'model.parts.transformer.pth'; did you mean 'path'?"),
        ("quantizer=rtn/", "quantizer=rtn/ is no option of the group quantizer; did you mean 'rtn'? ("),
        ("quantizer=rtn/x", "quantizer=rtn/x is no option of the group quantizer; did you mean 'rtn'? ("),
        ("quantizer=", "quantizer= is no option of the group quantizer; known are auto, awq, "),
        ("model=/", "model=/ is no option of the group model; known are "),
        ("metric.metrics=psnr", "metric.metrics takes a list; write 'metric.metrics=[psnr]'"),
        ("quantize='denoiser'", "quantize takes a list; write 'quantize=[denoiser]'"),
        ("objective=x", "objective takes a list; write 'objective=[x]'"),
        ("stages=null", "stages cannot be null; leave stages=null out, or give it a value"),
        ("model.call=null", "model.call cannot be null; leave model.call=null out, or give it a value"),
        ("seed=${oc.env:NOPE}", "seed=${oc.env:NOPE}: the environment has no variable NOPE; set it, or write "),
        ("name=a_${oc.env:NOPE}", "name=a_${oc.env:NOPE}: the environment has no variable NOPE; set it, or write "),
        ("seed=${nope.x}", "seed: Interpolation key 'nope.x' not found; correct its value"),
        (f"{TARGET}=segquant.presets.__class__", f"{TARGET}=segquant.presets.__class__ {PATH}"),
        (f"{TARGET}=builtins.__import__", f"{TARGET}=builtins.__import__ {PATH}"),
        (f"{TARGET}=rtn", f"{TARGET}=rtn {PATH}"),
        (f"{TARGET}=a..b", f"{TARGET}=a..b {PATH}"),
        (f"{TARGET}=segquant.presets.gtpq", f"{TARGET}=segquant.presets.gtpq is no function of segquant.presets; did "),
        (f"{TARGET}=segquant.presets.settings", f"{TARGET}=segquant.presets.settings is no function of "),
        (f"{TARGET}=segquant.presets.rounded.rtn", f"{TARGET}=segquant.presets.rounded.rtn is no quantizer; it must "),
        (f"{TARGET}=their_pkg_that_is_not.Method", f"{TARGET}=their_pkg_that_is_not.Method: there is no package "),
        ("dataset.archive=http://x.org/a.zip", f"dataset.archive='http://x.org/a.zip' {LOCAL}"),
        ("dataset.archive=file:///a.zip", f"dataset.archive='file:///a.zip' {LOCAL}"),
        ("model.path=https://huggingface.co/a/b", f"model.path='https://huggingface.co/a/b' {LOCAL}"),
        ("model.repo=https://huggingface.co/a/b", "model.repo='https://huggingface.co/a/b' is an address; give a "),
    ],
)  # fmt: skip
def test_sentences(
    command: Command, tmp_path: Path, argument: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    outcome = command(argument, f"cache={tmp_path / 'cache'}")
    assert outcome.code == 1 and outcome.sentence.startswith(f"segquant: {sentence}")
    assert "Traceback" not in outcome.err and "Error executing job" not in outcome.err
    assert not (tmp_path / "cache" / "stage").exists()


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "3")
    monkeypatch.delenv("NOPE", raising=False)
    check_environment(["seed=${oc.env:THERE}", "seed=${oc.env:NOPE,3}", "name='${oc.env:THERE}'", "seed=3"])
    with pytest.raises(PipelineError, match="no variable NOPE"):
        check_environment(["seed=${oc.env:THERE}", "seed=${oc.decode:${oc.env:NOPE}}"])
