"""A stage: the mean colour of every generated picture."""

from pathlib import Path

import numpy as np
from PIL import Image

from segquant.files import write_json
from segquant_bench.pipelines.stages.run import Run, Stage


def _compute(run: Run, folder: Path) -> None:
    pictures = sorted((run.folder("generate") / "images").glob("*.png"))
    means = [np.asarray(Image.open(path), dtype=float).mean((0, 1)) for path in pictures]
    write_json(folder / "colours.json", [mean.tolist() for mean in means])


COLOURS = Stage("colours", _compute, needs=("generate",))
