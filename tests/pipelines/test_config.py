"""Every configuration composes, validates and instantiates."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipelines.config import RunConfig, validate
from pipelines.errors import PipelineError, nearest
from pipelines.main import CONF
from pipelines.method import build_method, check_metrics
from tests.pipelines.conftest import compose_config

GROUPS = ("model", "dataset", "calibration", "quantizer", "precision", "metric", "logger", "experiment")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
NEEDED = {"model=tiny_random": ["model.path=somewhere"], "dataset=tiny": ["dataset.archive=somewhere"]}
QUANTIZERS = [path.stem for path in sorted((CONF / "quantizer").glob("*.yaml"))]
PRECISIONS = [path.stem for path in sorted((CONF / "precision").glob("*.yaml"))]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_instantiates(option: str) -> None:
    from eval import Backends

    run = validate(compose_config([option, *NEEDED.get(option, [])]))
    assert isinstance(run, RunConfig)
    assert run.name == f"{run.quantizer_name}_{run.precision.name}"
    assert build_method(run).name == run.quantizer_name
    check_metrics(run.metric)
    Backends(**vars(run.metric.backends))


def test_every_quantizer_at_every_precision() -> None:
    import segquant

    assert set(PRECISIONS) == set(segquant.PRECISIONS)
    refused = set()
    for quantizer in QUANTIZERS:
        run = validate(compose_config([f"quantizer={quantizer}"]))
        for precision in PRECISIONS:
            run.quantizer["precision"] = precision
            try:
                method = build_method(run)
            except PipelineError:
                refused.add((quantizer, precision))
                continue
            assert quantizer == "none" or method.scheme == segquant.PRECISIONS[precision]
    assert refused == {("smoothquant", "w4a16")}


def test_quantizer_files_show_every_argument() -> None:
    """What a preset takes is in its file with the preset's own default, so that it can be set without "+"."""
    import inspect

    from segquant import presets

    for quantizer in QUANTIZERS:
        shown = OmegaConf.to_container(OmegaConf.load(CONF / "quantizer" / f"{quantizer}.yaml"))
        parameters = inspect.signature(getattr(presets, quantizer)).parameters
        assert shown.keys() - {"_target_"} <= parameters.keys()
        if quantizer == "none":
            continue
        assert parameters.keys() == shown.keys() - {"_target_"}
        for key, value in shown.items():
            if key not in ("_target_", "precision"):
                assert value == (list(parameters[key].default) if key == "skip" else parameters[key].default), key


def test_demo_is_the_promised_sweep() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=["experiment=demo"], return_hydra_config=True)
    assert dict(config.hydra.sweeper.params) == {
        "quantizer": "none,rtn,smoothquant,segquant_g",
        "precision": "w8a8_tensor,w4a8",
    }
    assert config.dataset.size >= 128 and config.model.name == "emoji_sd3"


def test_defaults_of_the_backends_are_those_of_eval() -> None:
    from eval import Backends
    from pipelines.config import FID_EXTRACTORS, LPIPS_TRUNKS, BackendsConfig

    theirs = vars(Backends())
    assert all(theirs[key] == value for key, value in vars(BackendsConfig()).items())
    for name in FID_EXTRACTORS:
        Backends(fid=name)
    for name in LPIPS_TRUNKS:
        Backends(lpips=name)


def test_missing_values_are_named() -> None:
    with pytest.raises(PipelineError, match="no value for model"):
        validate(compose_config(["~model"]))
    with pytest.raises(PipelineError, match="schema"):
        validate(OmegaConf.create({"model": 1}))


def test_nearest_names() -> None:
    assert nearest("seglinar", ["seglinear", "dualscale"]) == "did you mean 'seglinear'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b"


def test_zoo_paths_are_absolute() -> None:
    run = validate(compose_config([]))
    assert Path(run.model.path).is_absolute() and Path(run.model.path).parts[-3:] == (
        "pipelines",
        "zoo",
        "emoji_sd3",
    )
