"""A small sweep over every pipeline that ships here, as the README's table has it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from segquant_bench.eval import load_results
from segquant_bench.eval.report.main_table.columns import layer_error
from tests.pipelines.conftest import Command

SMALL = [
    "dataset.size=4", "calibration.prompts=4", "calibration.held_out=2", "calibration.steps_per_prompt=2",
    "model.call.num_inference_steps=4", "metric.metrics=[psnr]", "metric.bootstrap=20", "logger=none",
]  # fmt: skip


@pytest.mark.slow
def test_every_embedded_pipeline_in_one_sweep(command: Command, tmp_path: Path) -> None:
    """The small ones of its kind are in test_sweep.py and test_family_runs.py."""
    sweep = ["model=glob(emoji_*)", "quantizer=smoothquant,segquant_g", "precision=w8a8_tensor,w4a8"]
    outcome = command("-m", *sweep, *SMALL, "quantizer.alpha=0.5", f"cache={tmp_path}/cache")
    assert outcome.code == 0, outcome.err
    runs = load_results([outcome.folder])
    models = ["emoji_flux", "emoji_sd3", "emoji_sd3_canny", "emoji_sdxl"]
    assert Counter(run.model for run in runs) == dict.fromkeys(models, 4)
    found = {(run.model, run.precision, run.quantizer): run for run in runs}
    for model in models:
        for precision in ("w8a8_tensor", "w4a8"):
            ours, theirs = (found[model, precision, name] for name in ("segquant_g", "smoothquant"))
            assert layer_error(ours).value < layer_error(theirs).value
            assert 15 < ours.metric("psnr").value < 80  # which of the two is ahead four pictures cannot tell
    table = (outcome.folder / "table.md").read_text()
    assert all(table.count(f"| {model} |") == 8 for model in models)  # judgement, then size and cost
    comparisons = (outcome.folder / "comparisons.csv").read_text()
    assert all(f"\n{model},w4a8,segquant_g,smoothquant,psnr," in comparisons for model in models)
