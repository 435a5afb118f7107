"""What tables call a method is no other method's name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from omegaconf import OmegaConf

from segquant_bench.pipelines.config.labels import check_quantizer, known, label_of, with_model_name
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.runtime.paths import CONF, ZOO
from tests.pipelines.conftest import compose_config

NAMES = sorted(path.stem for path in (CONF / "quantizer").glob("*.yaml"))


@pytest.mark.parametrize(("overrides", "name"), [
    (["model.path=/data/my pipeline"], "my-pipeline"), (["model.repo=owner/name"], "name"),
    (["model=emoji_sdxl", "model.path='/data/x'"], "x"), (["model=sd35_medium", "model.path=/data/x"], None),
    (["model=tiny_random", "model.path=/data/x"], None), (["model.path=/data/x", "model.name=own"], None),
    (["model.path=/a,/b"], None), (["model.path=null"], None), (["experiment=main", "model.path=/data/x"], None),
    ([f"model.path={ZOO}/emoji_sdxl"], None), (["quantizer=rtn"], None), (["model.path=/"], None),
])  # fmt: skip
def test_a_pipeline_of_ones_own_is_called_by_its_folder(overrides: list[str], name: str | None) -> None:
    assert with_model_name(overrides) == [*overrides, *([] if name is None else [f"model.name={name}"])]


def _composed(name: str) -> dict[str, Any]:
    found = OmegaConf.to_container(compose_config([f"quantizer={name}"]).quantizer)
    assert isinstance(found, dict)
    return found


def _is_taken(quantizer: dict[str, Any]) -> bool:
    try:
        check_quantizer(quantizer)
    except PipelineError:
        return False
    return True


def test_no_quantizer_takes_another_ones_name() -> None:
    """Of all pairs but those that are one method with a part of its own, of which the other is told by that part."""
    assert sorted(known()) == NAMES and len(NAMES) > 40
    made = {name: {**apart, "precision": "w8a8"} for name, apart in known().items()}
    same = {("rtn", "ptqd"), ("rtn", "tac"), ("rtn", "ptq4dm")}
    same |= {pair for pair in itertools.product(("ptqd", "tac", "ptq4dm", "rtn"), repeat=2) if pair[0] != pair[1]}
    for one, other in itertools.product(NAMES, NAMES):
        wanted = one == other or (one, other) in same or (one, other) == ("sdnq_svd", "sdnq")
        assert _is_taken({**made[one], "name": other}) == wanted, (one, other)
        assert not _is_taken({"_target_": f"their_pkg.{one}", "name": other})
    assert _is_taken({"_target_": "their_pkg.gptq", "name": "mine"}) and not _is_taken({"_target_": "their_pkg.gptq"})


@pytest.mark.parametrize("name", ["none", "rtn", "ptqd", "ptq4dm", "sdnq_svd", "gptq_mse", "auto", "quanto"])
def test_what_ships_has_its_own_name(name: str) -> None:
    found = _composed(name)
    check_quantizer(found)
    assert label_of(found) == name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quantizer=rtn", "+quantizer.name=none"], "presets.rtn would be called none in tables.*quantizer=none"),
        (["quantizer=rtn", "+quantizer.name=None"], "called none in tables"),
        (["quantizer=none", "+quantizer.name=mine"], "quantizer.name=mine is no name of the unquantized model"),
        (["quantizer=none", "quantizer._target_=segquant.presets.rtn", "+quantizer.name=none"], "called none"),
        (["quantizer=rtn", "+quantizer.name=gptq"], "would be called gptq in tables.*choose quantizer=gptq"),
        (["quantizer=rtn", "+quantizer.name=GPTQ"], "would be called GPTQ in tables.*choose quantizer=gptq"),
        (["quantizer=ptqd", "quantizer._target_=segquant.presets.gptq"], "would be called ptqd in tables"),
        (["quantizer=rtn", "+quantizer.name=ptqd"], "ptqd is rtn with correction=ptqd, but correction is none"),
        (["quantizer=ptqd", "correction.method=affine"], "correction.name=ptqd is not what correction.method=affine"),
        (
            ["quantizer=ptq4dm", "calibration.timesteps=uniform"],
            "calibration.timesteps is uniform; choose quantizer=rtn",
        ),
        (["correction=affine", "correction.name=none"], "correction.name=none is not what correction.method=affine"),
        (["correction=none", "correction.name=tac"], "correction.name=tac is not what correction.method=none"),
        (["correction=affine", "correction.name=a/b"], "cannot name a folder"),
        (["quantize=[text_encoder]", "+components.text_encoder._target_=segquant.presets.gptq"], "another method than"),
        (["quantize=[text_encoder]", "+components.text_encoder.name=gptq"], "components.text_encoder.name would give"),
    ],
)
def test_keys_that_contradict_the_group(overrides: list[str], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        validate(compose_config(overrides))


def test_labels_of_ones_own() -> None:
    run = validate(
        compose_config(["quantizer=rtn", "+quantizer.name=rtn_mine", "correction=affine", "correction.name=a"])
    )
    assert run.quantizer_name == "rtn_mine" and run.name == "rtn_mine+a_w8a8_tensor"
