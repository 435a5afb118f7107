"""Every key of a run's configuration with values of every type: which end in a traceback."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.config.quantizer import check_used
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.config.shipped import check_shipped
from segquant_bench.pipelines.loggers.find import find_logger
from segquant_bench.pipelines.main import user_message
from segquant_bench.pipelines.stages.benchmark import check_run, open_run
from tests.pipelines.conftest import Tiny, compose_config

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 10**30, -(10**30), 0.0, 0.5, -0.5, 1.5, 1e308, 1e-300, math.nan, math.inf,
    -math.inf, "", " ", "none", "auto", "x", "x" * 500, "../../x", "/nonexistent/x", "猫", "a\nb", "a\0b", "\ud800",
    "=1+1", "1", "nan", "os.system", "cuda:77", "${seed}", "[a]", [], [1], ["x"], [None], [[]], ["psnr", "psnr"], {},
    {"a": 1}, {"_target_": "os.system"}, {"x": {}}, {"": None}, {"bits": 3},
)  # fmt: skip
SETTINGS: tuple[tuple[str, ...], ...] = (
    (), ("quantizer=rtn", "correction=affine", "precision=w4a8"), ("quantizer=gptq_mixed", "precision=custom"),
    ("quantizer=auto", "calibration=normal", "logger=wandb", "run=reference"), ("quantizer=none", "precision=fp8"),
    ("quantizer=segquant_r", "correction=tac", "calibration=loss", "logger=tensorboard"),
)  # fmt: skip


def keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Of every value, mappings too."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(config, key) and isinstance(config._get_node(key), DictConfig):
            node = config._get_node(key)
            if not node._is_none():
                yield from keys(node, f"{prefix}{key}.")


class Values:
    """Configurations of the tiny pipeline with one value changed.

    Attributes:
        refused, right, faults: how many ended in a sentence and how many are taken; what ended otherwise.
    """

    def __init__(self, tiny: Tiny, cache: Path) -> None:
        self._tiny, self._cache = tiny, cache
        self.refused, self.right, self.faults = 0, 0, list[str]()

    def every(self, settings: tuple[str, ...]) -> list[tuple[str, Any]]:
        return list(itertools.product(keys(self._base(settings)), VALUES))

    def _base(self, settings: tuple[str, ...]) -> DictConfig:
        return compose_config([*self._tiny.overrides(self._cache), *settings])

    def try_all(self, settings: tuple[str, ...], pairs: Iterable[tuple[str, Any]]) -> None:
        base = self._base(settings)
        for key, value in pairs:
            self._try(base.copy(), key, value, settings)

    def _try(self, config: DictConfig, key: str, value: Any, settings: tuple[str, ...]) -> None:
        what = f"{' '.join(settings)} {key}={value!r:.60}"
        try:
            OmegaConf.update(config, key, value, merge=isinstance(value, dict) and bool(value))
            str(config.name)  # as Hydra does for the run's folder
            run = validate(config)
            check_used(run)
            check_shipped(run)
            find_logger(run.logger)
            check_run(open_run(run))
        except Exception as error:
            message = user_message(error)
            if message is None or "\n" in message or len(message) > 1500:
                self.faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            self.refused += message is not None
            return
        self.right += 1
        if not isinstance(run.seed, int):
            self.faults.append(f"{what}: taken")


def drawn(pairs: list[tuple[str, Any]], count: int, seed: int) -> list[tuple[str, Any]]:
    return random.Random(seed).sample(pairs, min(count, len(pairs)))
