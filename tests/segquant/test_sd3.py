"""The order of the methods on a random SD3, on fresh inputs."""

from __future__ import annotations

import copy
import math

import pytest

pytest.importorskip("diffusers")

from segquant import find_segments, layer_errors, observe, output_error, presets, quantize_
from tests.segquant.sd3 import random_sd3, sd3_batches


@pytest.mark.parametrize("precision, options", [("w8a8_tensor", {}), ("w4a8", {"rank": 4, "alpha": 0.5})])
def test_segquant_leads_on_a_random_sd3(precision: str, options: dict[str, float]) -> None:
    model = random_sd3()
    calibration, held = sd3_batches(model, 24, seed=1), sd3_batches(model, 8, seed=2)
    segments, stats = find_segments(model, (), calibration[0]), observe(model, calibration, gram=True)
    layer, output = {}, {}
    for name in ("rtn", "smoothquant", "segquant_a", "segquant_g"):
        method = getattr(presets, name)(precision, **(options if name.startswith("segquant") else {}))
        found = quantize_(copy.deepcopy(model), method, [], segments, stats=stats)
        errors = layer_errors(model, found, held).values()
        layer[name] = math.exp(sum(map(math.log, errors)) / len(errors))
        output[name] = output_error(model, found, held)
    for baseline in ("rtn", "smoothquant"):
        assert layer["segquant_a"] < layer[baseline] and layer["segquant_g"] < 0.9 * layer[baseline], (
            layer,
            output,
        )
        assert output["segquant_a"] < 0.9 * output[baseline], (layer, output)
        assert output["segquant_g"] < 0.8 * output[baseline], (layer, output)
    assert layer["segquant_g"] < layer["segquant_a"]
