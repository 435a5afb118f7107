"""Whatever stands on the command line: flags in any place, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from segquant_bench.pipelines.config.arguments import check_overrides
from segquant_bench.pipelines.config.flags import flags_and_overrides
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.searchpath import options
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import user_message
from tests.pipelines.conftest import Command, Tiny, compose_config


def test_flags_stand_anywhere_and_may_be_cut_short() -> None:
    wanted = (["--multirun", "--config-dir=/a"], ["seed=1", "seed=2"])
    for line in (
        "-m --config-dir /a seed=1 seed=2",
        "seed=1 --config-di /a seed=2 -m",
        "seed=1 -- -cd=/a seed=2 --mul",
    ):
        flags, overrides = flags_and_overrides(line.split())
        assert (sorted(flags, reverse=True), overrides) == wanted
    assert flags_and_overrides("--info seed=1 --cfg job".replace(" --cfg job", "").split()) == (
        ["--info=all"], ["seed=1"],
    )  # fmt: skip
    assert flags_and_overrides(["-i", "defaults", "-p", "a"]) == (["--info=defaults", "--package=a"], [])
    assert flags_and_overrides(["-sc", "install=bash"]) == (["--shell-completion"], ["install=bash"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--foo", "there is no flag --foo; did you mean"),
        ("--config", "there is no flag --config; did you mean '--config-"),
        ("--config-dir", "--config-dir needs a value"),
        ("-cd -m", "-cd needs a value; write --config-dir=VALUE"),
        ("--cfg jobb", "did you mean 'job'"),
        ("--multirun=1", "takes no value"),
        ("--run --multirun", "--run and --multirun exclude one another"),
        ("--cfg job -m", "exclude one another"),
        ("--resolve", "write --cfg job --resolve"),
        ("--shell-completion", "needs one of install=SHELL"),
        ("-sc install=tcsh", "SHELL is bash, fish, zsh"),
        ("--experimental-rerun x", "reads a pickle"),
    ],
)
def test_flags_that_are_wrong(line: str, words: str) -> None:
    with pytest.raises(PipelineError) as raised:
        flags_and_overrides(line.split())
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantizer=null", "quantizer=null names no option of the group quantizer; known are auto"),
        ("precision=3", "names no option of the group precision"),
        ("experiment=null", "names no option of the group experiment"),
        ("quantizer=rtn,null", "names no option"),
        ("hydra/launcher=null", "write hydra/launcher=NAME"),
        ("~model", "leaves a run without its model; choose another with model=NAME"),
        ("=", "'=' has no key"),
        ("+=a", "has no key"),
        ("rtn", "'rtn' has no value"),
        ("quantizer.overrides={", "'quantizer.overrides={' cannot be read as KEY=VALUE"),
        ("seed=range(0)", "is a sweep over no value"),
        ("quantizer=glob(zz*)", "fits no option of the group quantizer"),
    ],
)
def test_overrides_that_are_wrong(override: str, words: str) -> None:
    assert words in _refusal(override, sweeps=True)


def test_several_values_without_a_sweep() -> None:
    assert _refusal("quantizer=rtn,gptq", sweeps=False) == (
        "quantizer=rtn,gptq names several values; add -m to run each of them"
    )
    assert "or write 'name=[a,b]' for a list" in _refusal("name=a,b", sweeps=False)


def test_overrides_that_are_right(tmp_path: Path) -> None:
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "mine.yaml").write_text("a: 1\n")
    right = ["quantizer=glob(min*)", "seed=range(2)", "quantizer=rtn,mine", "quantizer='rtn'", "+a.b=null",
             "~experiment", "~quantizer.alpha", "quantizer.overrides={*.x:{rank:1}}", "name=", "seed=1,2"]  # fmt: skip
    check_overrides(right, options([tmp_path]), sweeps=True)


def _refusal(override: str, *, sweeps: bool) -> str:
    with pytest.raises(Exception) as raised:  # Hydra's or ours, as long as a sentence comes of it
        check_overrides([override], options([]), sweeps=sweeps)
    found = user_message(raised.value)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantizer._target_=null", "the quantizer has no _target_; choose one"),
        ("quantizer._target_=[a]", "the quantizer has no _target_; choose one"),
        ("~quantizer", "no value for quantizer; add quantizer=VALUE"),
        ("~model.call", "model.call cannot be taken away"),
        ("quantizer.overrides=[a]", "write 'quantizer.overrides={KEY: VALUE}'"),
        ("stages=[a]", "write 'stages={KEY: VALUE}'"),
        ("metric.metrics={a: 1}", "'metric.metrics=[VALUE]'"),
        ("model.name=null", "model.name cannot be null; leave model.name=null out"),
        ("name='${nowhere}'", "Interpolation key 'nowhere' not found"),
    ],
)
def test_values_that_are_wrong(override: str, words: str) -> None:
    with pytest.raises(Exception) as raised:  # OmegaConf's of any kind
        str(compose_config([override]).name)  # looked up, as the run's folder does
    message = user_message(raised.value)
    assert message is not None and words in message
    assert "full_key" not in message and "object_type" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("metric.metrics=[[psnr]]", "metric.metrics holds ['psnr'], which is no text; write 'metric"),
        ("metric.metrics=[psnr,{a: 1}]", "metric.metrics holds {'a': 1}"),
        ("objective=[[output_error]]", "objective holds"),
        ("metric.metrics=[psnr,null]", "metric.metrics[1] is none of the values"),
        ("quantize=[[denoiser]]", "quantize holds"),
        ("logger.tags=[[a]]", "logger.tags holds ['a']"),
        ("cache=", "cache is empty"),
        ("prune_above=-1", "from 0 to"),
        ("dataset.archive=/dev/zero", "is neither a file nor a folder, but a device or a pipe"),
        ("+quantizer.smoothing=[]", "quantizer.smoothing=[] holds nothing"),
        ("+quantizer.name={}", "quantizer.name={} holds"),
        ("cache=${oc.env:NOT_THERE_AT_ALL}", "cache: "),
    ],
)  # fmt: skip
def test_values_that_validation_refuses(override: str, words: str) -> None:
    with pytest.raises(Exception) as raised:  # OmegaConf's or ours
        config = compose_config([override])
        str(config.name)
        validate(config)
    message = user_message(raised.value)
    assert message is not None and words in message, message


@pytest.mark.parametrize("override", ["quantizer=[rtn,gptq]", "precision=[w8a8,w8a8]", "run=[]", "precision=[]"])
def test_a_list_in_the_place_of_an_option(override: str) -> None:
    group = override.partition("=")[0]
    assert f"gives a list, and a run has one {group}; for a run each write -m {group}=" in _refusal(
        override, sweeps=True
    )


def test_a_refused_run_says_so_once(command: Command, tmp_path: Path) -> None:
    outcome = command("logger=none", f"model.path={tmp_path}/nowhere", f"cache={tmp_path}/cache")
    assert outcome.code == 1 and outcome.err.count("nowhere does not exist") == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "nowhere does not exist" in (outcome.folder / "segquant.log").read_text()
    assert "nowhere does not exist" in (outcome.folder / "failure.json").read_text()


@pytest.mark.parametrize("place", ["run", "sweep"])
def test_a_folder_where_none_can_be_made(command: Command, tmp_path: Path, place: str) -> None:
    # The fixture's own place stands behind, so that this one is given as a link.
    (tmp_path / "run").symlink_to("/proc/segquant")
    outcome = command(*(["-m"] if place == "sweep" else []), "logger=none")
    assert outcome.code == 1 and "cannot be written (" in outcome.sentence
    assert "hydra.run.dir=DIRECTORY (of a sweep: hydra.sweep.dir)" in outcome.sentence


def test_a_cache_where_none_can_be_made_is_told_before_the_work(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/segquant", tmp_path / "file"):
        outcome = command(*tiny.overrides(place))
        assert outcome.code == 1 and f"cache={place} cannot be made (" in outcome.sentence
