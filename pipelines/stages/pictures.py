"""The stage of the real pictures that a run is judged against, shared by all models of one picture size."""

from __future__ import annotations

from pathlib import Path

from segquant_bench.pipelines.data.pictures import write_pictures
from segquant_bench.pipelines.runtime import digests
from segquant_bench.pipelines.runtime.cache import Stage
from segquant_bench.pipelines.stages.context import Context
from segquant_bench.pipelines.stages.judgement import needs_real


class PictureStage(Context):
    """Real pictures as PNGs, written once."""

    @property
    def judges_real(self) -> bool:
        """Whether a metric compares with real pictures."""
        return bool(needs_real(self.config.metric))

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of generated pictures."""
        return self.config.model.call.width, self.config.model.call.height

    def real(self) -> Stage:
        """images/: the real pictures, at the generated ones' size where the data set fits them."""
        fit = self.dataset.fit
        depends = {
            "pictures": self.dataset.digest,
            "fit": fit,
            "size": None if fit is None else list(self.picture_size),
            "code": digests.modules_digest("data.pictures"),
        }
        return self._stage("real", depends, self._real)

    def _real(self, folder: Path) -> None:
        write_pictures(self.dataset.real, folder / "images", self.picture_size, self.dataset.fit)
