"""Sweeps over lists of grids: which jobs run, in which order, and what the command line changes."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import OmegaConf

from segquant_bench.pipelines.config.grids import GridSweeper, GridSweeperConf
from segquant_bench.pipelines.config.resolvers import register
from segquant_bench.pipelines.main import CONF
from tests.pipelines.conftest import Command, Tiny


def _jobs(*arguments: str, grids: list[dict]) -> list[list[str]]:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        sweeper = GridSweeper(grids=grids)
        loader = GlobalHydra.instance().config_loader()
        sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=Callbacks())
        return sweeper.jobs(arguments)


PAIRS = [{"quantizer": "none"}, {"quantizer": ["rtn", "mse"], "precision": "w8a8,w4a8"}]


def test_grids_follow_one_another() -> None:
    assert _jobs(grids=PAIRS) == [
        ["quantizer=none"],
        ["quantizer=rtn", "precision=w8a8"],
        ["quantizer=rtn", "precision=w4a8"],
        ["quantizer=mse", "precision=w8a8"],
        ["quantizer=mse", "precision=w4a8"],
    ]


def test_command_line_is_crossed_with_every_grid_and_narrows_its_keys() -> None:
    assert _jobs("seed=0,1", "precision=w4a8,fp8", grids=PAIRS) == [
        *[["quantizer=none", f"seed={seed}", f"precision={name}"] for seed in (0, 1) for name in ("w4a8", "fp8")],
        *[[f"quantizer={name}", "precision=w4a8", f"seed={seed}"] for name in ("rtn", "mse") for seed in (0, 1)],
    ]
    assert _jobs("quantizer=rtn", grids=PAIRS) == [["quantizer=rtn", f"precision={p}"] for p in ("w8a8", "w4a8")]


def test_values_that_no_grid_has_replace_the_key() -> None:
    assert _jobs("precision=fp8", grids=PAIRS) == [
        [f"quantizer={name}", "precision=fp8"] for name in ("none", "rtn", "mse")
    ]


def test_equal_jobs_run_once() -> None:
    assert _jobs("quantizer=gptq", "precision=fp8", grids=PAIRS) == [["quantizer=gptq", "precision=fp8"]]


def test_yaml_values_are_choices_or_plain_values() -> None:
    assert _jobs(grids=[{"quantizer.seglinear": [False, True], "quantizer.rank": None, "quantizer.alpha": 0.5}]) == [
        ["quantizer.seglinear=False", "quantizer.rank=None", "quantizer.alpha=0.5"],
        ["quantizer.seglinear=True", "quantizer.rank=None", "quantizer.alpha=0.5"],
    ]


def test_without_grids_it_is_the_product_of_the_command_line() -> None:
    assert _jobs("quantizer=rtn", "precision=fp8,w4a8", grids=[]) == [
        ["quantizer=rtn", "precision=fp8"],
        ["quantizer=rtn", "precision=w4a8"],
    ]


def test_hydra_makes_it_from_its_configuration() -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", overrides=["hydra/sweeper=grids"], return_hydra_config=True)
    settings = config.hydra.sweeper
    assert OmegaConf.get_type(settings) is GridSweeperConf
    settings.grids = PAIRS
    made = Plugins.instance()._instantiate(settings)
    assert isinstance(made, GridSweeper) and made.grids == PAIRS


def test_sweep_over_pairs(command: Command, tiny: Tiny, cache: Path) -> None:
    grids = "[{quantizer: none}, {quantizer: [rtn], precision: w8a8}, {quantizer: smoothquant, precision: w8a8_tensor}]"
    outcome = command("-m", *tiny.overrides(cache), "hydra/sweeper=grids", f"hydra.sweeper.grids={grids}")
    assert outcome.code == 0, outcome.err
    names = ["0_none_w8a8_tensor", "1_rtn_w8a8", "2_smoothquant_w8a8_tensor"]
    assert sorted(path.parent.name for path in outcome.folder.glob("*/results.json")) == names
    assert (outcome.folder / "report.html").is_file()


def test_a_misspelt_option_in_a_grid_runs_nothing(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    grids = "[{quantizer: rtn}, {quantizer: segqant_g}]"
    arguments = [*tiny.overrides(tmp_path / "cache"), "hydra/sweeper=grids", f"hydra.sweeper.grids={grids}"]
    outcome = command("-m", *arguments)
    assert outcome.code == 1 and "did you mean 'segquant_g'" in outcome.sentence
    assert not (tmp_path / "cache" / "stage").exists()
