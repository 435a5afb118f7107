"""Every configuration composes, validates and instantiates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import OmegaConf

from segquant_bench.hints import nearest
from segquant_bench.pipelines.config.quantizer import build_method, build_quantizer
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import CONF
from segquant_bench.pipelines.stages.shared.judgement import check_metrics
from tests.pipelines.conftest import Command, compose_config

if TYPE_CHECKING:
    from segquant import Method
    from segquant_bench.pipelines.peers import Peer

GROUPS = ("model", "dataset", "calibration", "correction", "quantizer", "precision", "metric", "logger", "experiment")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
OPTIONS.remove("quantizer=plan")  # needs a file, see below
PEER_PRECISIONS = {"torchao_int8_dynamic": "w8a8_dynamic", "modelopt_fp8": "fp8", "sdnq": "w4a8", "sdnq_svd": "w4a8"}
PEER_PRECISIONS |= dict.fromkeys(("torchao_int4", "modelopt_awq", "quanto", "torchao_intx", "bnb_fp4"), "w4a16")
PEER_PRECISIONS |= {"torchao_fp8": "fp8_dynamic", "torchao_mx": "mxfp4", "torchao_nvfp4": "nvfp4", "gguf": "q4_0"}
PEER_PRECISIONS |= {"bnb_nf4": "w4a16_nf4", "bnb_int8": "w8a8_dynamic"}
NEEDED = {f"quantizer={name}": [f"precision={precision}"] for name, precision in PEER_PRECISIONS.items()}
NEEDED |= {"model=tiny_random": ["model.path=somewhere"], "dataset=tiny": ["dataset.archive=somewhere"]}
NEEDED |= {"dataset=folder": ["dataset.table=somewhere.csv"]}
QUANTIZERS = [
    path.stem
    for path in sorted((CONF / "quantizer").glob("*.yaml"))
    if "segquant.presets" in path.read_text() and path.stem != "plan"
]
SMOOTHING = ("smoothquant", "smoothquant_plus", "smoothquant_gptq", "ptq4dit", "vidit_q")
"""Refused where inputs are floats."""
PRECISIONS = [path.stem for path in sorted((CONF / "precision").glob("*.yaml")) if path.stem != "custom"]


def build_method_if_installed(run: RunConfig) -> Method | Peer:
    try:
        return build_method(run)
    except PipelineError as error:
        if "[peers]" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_instantiates(option: str) -> None:
    from segquant_bench.eval import Backends

    run = validate(compose_config([option, *NEEDED.get(option, [])]))
    assert isinstance(run, RunConfig)
    added = "" if run.correction.name in ("none", run.quantizer_name) else f"+{run.correction.name}"
    assert run.name == f"{run.quantizer_name}{added}_{run.precision.name}"
    assert build_method_if_installed(run).name == run.preset_name
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
    dynamic = {name for name in PRECISIONS if not segquant.PRECISIONS[name].static_input}
    alone = {name for name in PRECISIONS if segquant.PRECISIONS[name].input is None}
    smoothed = {(method, name) for method in SMOOTHING for name in alone}
    assert refused == smoothed | {("percentile", name) for name in dynamic}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizer_files_show_every_argument_at_its_default(quantizer: str) -> None:
    """What a preset takes is in its file with the preset's own default, so that it can be set without "+"."""
    from segquant import presets
    from tests.segquant.test_presets import taken

    run = validate(compose_config([f"quantizer={quantizer}"]))
    preset = getattr(presets, run.quantizer["_target_"].rpartition(".")[2])
    if quantizer != "none":
        assert run.quantizer.keys() - {"_target_"} == {"precision"} | taken(preset.__name__)
    assert build_method(run) == preset(run.precision.name)


def test_a_plan_is_named_by_its_path(tmp_path: Path) -> None:
    from segquant import presets
    from segquant.method.plan_file import LayerPlan, write_plan

    path = tmp_path / "plan.json"
    write_plan(path, presets.auto("w8a8_tensor"), [LayerPlan("a.b", {"rotate": True})])
    with pytest.raises(PipelineError, match="needs quantizer.path"):
        build_method(validate(compose_config(["quantizer=plan"])))
    method = build_method(validate(compose_config(["quantizer=plan", f"quantizer.path={path}"])))
    changed = method.for_layer("a.b")
    assert changed is not None and changed.rotation and method.budget is None
    with pytest.raises(PipelineError, match="another precision"):
        build_method(validate(compose_config(["quantizer=plan", f"quantizer.path={path}", "precision=w4a8"])))


@pytest.mark.parametrize(
    ("quantizer", "section", "name"),
    [("ptqd", "correction", "ptqd"), ("tac", "correction", "tac"), ("ptq4dm", "calibration", "normal")],
)
def test_baselines_that_are_rounding_with_a_part_of_their_own(quantizer: str, section: str, name: str) -> None:
    run = validate(compose_config([f"quantizer={quantizer}"]))
    assert (run.quantizer_name, run.preset_name, getattr(run, section).name) == (quantizer, "rtn", name)
    assert build_method(run) == build_method(validate(compose_config(["quantizer=rtn"])))
    other = {"correction": "none", "calibration": "uniform"}[section]
    with pytest.raises(PipelineError, match=f"is rtn with {section}={name}"):
        validate(compose_config([f"quantizer={quantizer}", f"{section}={other}"]))


def test_demo_is_the_promised_sweep() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=["experiment=demo"], return_hydra_config=True)
    assert dict(config.hydra.sweeper.params) == {
        "quantizer": "none,rtn,smoothquant,gptq_mse,segquant_g,segquant_plus",
        "precision": "w8a8_tensor,w4a8",
    }
    assert config.dataset.size >= 128 and config.model.name == "emoji_sd3"


def test_defaults_of_the_backends_are_those_of_eval() -> None:
    from segquant_bench.eval import Backends
    from segquant_bench.pipelines.config.sections import FID_EXTRACTORS, LPIPS_TRUNKS, BackendsConfig

    theirs = vars(Backends())
    assert all(theirs[key] == value for key, value in vars(BackendsConfig()).items())
    for name in FID_EXTRACTORS:
        Backends(fid=name)
    for name in LPIPS_TRUNKS:
        Backends(lpips=name)


def test_missing_values_are_named() -> None:
    with pytest.raises(PipelineError, match="no value for model"):
        validate(compose_config(["~model"]))
    with pytest.raises(PipelineError, match=r"model=1 is no section; set model\.KEY=VALUE"):
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


def test_a_target_that_makes_no_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from segquant import presets

    monkeypatch.setattr(presets, "number", lambda precision: 3, raising=False)
    monkeypatch.setattr(presets, "__all__", [*presets.__all__, "number"])
    with pytest.raises(PipelineError, match="no segquant.Method; set quantizer._target_"):
        build_quantizer({"_target_": "segquant.presets.number", "precision": "w8a8"})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+encoders.text_encoder.seglinear=false", "encoders is called components now; set components"),
        ("encoders.text_encoder.seglinear=false", "encoders is called components now"),
        ("+encoders={text_encoder: {seglinear: false}}", "encoders is called components now; set components"),
        ("calibration.sampler=loss", "calibration.sampler is called calibration.timesteps now"),
        ("+calibration.sampler=loss", "calibration.sampler is called calibration.timesteps now"),
    ],
)
def test_keys_of_other_names_say_their_names_of_today(command: Command, override: str, words: str) -> None:
    outcome = command(override)
    assert outcome.code == 1 and words in outcome.sentence, outcome.err


EARLIER = {
    "quantizer=none": "1d26cda4864a",
    "quantizer=auto precision=w4a8_channel": "5b334405aabb",
    "quantizer=rtn calibration=loss correction=affine": "67d6ea1874e9",
    "quantizer=gptq quantize=[text_encoder] calibration=normal model=sdxl model.embeddings=live": "369604c3e177",
}
OTHERWISE = {
    "": "7e4cc0509b01",
    "quantizer=segquant_a quantize=[denoiser,text_encoder] +components.text_encoder.seglinear=false": "ea013da5b93b",
}
"""Earlier names that mean another method now."""


def test_hashes_of_earlier_results_stay() -> None:
    """As the version before wrote them, with `calibration.sampler` and `encoders`, and without `run`."""

    def hashed(*overrides: str) -> str:
        return config_hash(validate(compose_config(list(overrides))), "model", {"evaluation_hash": "x"})

    assert {overrides: hashed(*overrides.split(), "run=reference") for overrides in EARLIER} == EARLIER
    for overrides, hash_then in OTHERWISE.items():
        assert hashed(*overrides.split(), "run=reference") != hash_then
    assert hashed("quantizer=none") == EARLIER["quantizer=none"]
    assert hashed("quantizer=auto", "precision=w4a8", "run=reference") != "821bfe70e5b7", "whose scales were float32"


def test_the_hash_knows_what_static_scales_have_room_for_and_nothing_that_is_idle() -> None:
    """Settings that say what earlier results did leave their hashes; where those did something else, they do not."""

    def hashed(*overrides: str) -> str:
        return config_hash(validate(compose_config(["run=reference", *overrides])), "model", {})

    same = [
        ("quantizer=rtn", "quantizer.headroom=0.0", "quantizer.percentile=99.99", "quantizer.rotation_group=256"),
        ("quantizer=smoothquant", "quantizer.alpha_rows=held_out", "quantizer.alpha_none=true"),
        ("quantizer=gptq", "precision=w4a8", "quantizer.gram_shrinkage=0.5", "quantizer.headroom=search"),
    ]
    for quantizer, *settings in same:
        kept = [each for each in settings if each.startswith("precision")]
        assert hashed(quantizer, *settings) == hashed(quantizer, *kept)
    other = [
        "headroom=0.1",
        "headroom=search",
        "gram_shrinkage=0",
        "rotate=regular",
        "ranges=percentile",
        "ranges=clip",
    ]
    found = {hashed("quantizer=gptq", f"quantizer.{setting}") for setting in other} | {hashed("quantizer=gptq")}
    assert len(found) == len(other) + 1
    percentiles = {hashed("quantizer=percentile", f"quantizer.percentile={value}") for value in (99.9, 99.99)}
    assert len(percentiles) == 2
    # a cut input had headroom, and has none now unless it is asked for; no cut, none
    cut = [hashed("quantizer=smoothquant", "quantizer.seglinear=true", *more) for more in ([], ["precision=w4a8"])]
    assert cut[0] not in (hashed("quantizer=smoothquant"), cut[1])


def test_the_hash_knows_settings_of_stages_and_no_polarity() -> None:
    def hashed(*overrides: str) -> str:
        return config_hash(validate(compose_config(list(overrides))), "model", {})

    assert hashed() == hashed("polarity=true")
    assert len({hashed(), hashed("+stages.count.more=1"), hashed("+stages.count.more=2")}) == 3


@pytest.mark.parametrize(("override", "words"), [
    ("quantizer.seglinear=no", "quantizer.seglinear is 'no'; give True or False"),
    ("quantizer.alpha=true", "quantizer.alpha is True; give "),
])  # fmt: skip
def test_a_refused_setting_is_called_by_its_key(override: str, words: str) -> None:
    with pytest.raises(PipelineError) as raised:
        build_method(validate(compose_config(["quantizer=segquant_g", override])))
    assert str(raised.value).startswith(words)
