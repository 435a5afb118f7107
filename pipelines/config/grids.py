"""A sweep over several grids."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from segquant_bench.pipelines.config.arguments import with_open_keys
from segquant_bench.pipelines.config.sweeping import listed, opened, refuse_hopeless
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.sweeps.launch import raise_failure

# Hydra instantiates plugins of its own namespace only, so `register` puts this module there under this name.
NAMESPACE = "hydra_plugins.segquant"


@dataclass
class GridSweeperConf:
    """`override /hydra/sweeper: grids`; each of `grids` is like the basic sweeper's `params`."""

    _target_: str = f"{NAMESPACE}.GridSweeper"
    params: dict[str, Any] | None = None
    grids: list[dict[str, Any]] = field(default_factory=list)
    max_batch_size: int | None = None


class GridSweeper(Sweeper):
    """The jobs of every grid in order, each job once.

    Command-line keys are crossed with every grid. A grid that has the key keeps common values (`precision=w4a8` is the
    part at 4 bits), or no jobs. Values that no grid has replace the key (`calibration.prompts=8`).
    """

    __module__ = NAMESPACE

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        self.params, self.max_batch_size = dict(params or {}), max_batch_size
        self.grids = [dict(grid) for grid in grids or [{}]]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Check that there are jobs and that each composes, then launch all."""
        jobs = self.jobs(arguments)
        if not jobs:
            raise PipelineError(f"no job of the sweep has {' '.join(arguments)}; leave out or change what none has")
        refuse_hopeless(self, jobs)
        results = opened(self, self.max_batch_size).run(listed(self, jobs))
        for result in results:
            raise_failure(result)
        return [results]

    def jobs(self, arguments: Sequence[str]) -> list[list[str]]:
        common = self._parse([*_overrides(self.params), *arguments])
        asked = {override.get_key_element(): _choices(override) for override in common}
        grids = [self._parse(_overrides(grid)) for grid in self.grids]
        known: dict[str, set[str]] = {}
        for override in itertools.chain.from_iterable(grids):
            known.setdefault(override.get_key_element(), set()).update(_choices(override))
        narrows = {key for key, values in asked.items() if known.get(key, set()) & set(values)}
        found: dict[tuple[str, ...], None] = {}
        for grid in grids:
            narrowed = _narrowed(grid, {key: asked[key] for key in narrows})
            if narrowed is None:
                continue
            own = self._parse(narrowed)
            has = {override.get_key_element() for override in grid}
            rest = [entry for entry in common if entry.get_key_element() not in narrows & has]
            kept = [override for override in own if override.get_key_element() not in asked.keys() - narrows]
            (product,) = BasicSweeper.split_arguments([*kept, *rest], None)
            found.update(dict.fromkeys(tuple(job) for job in product))
        return [list(job) for job in found]

    def _parse(self, overrides: list[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(overrides)


def _choices(override: Override) -> list[str]:
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            raise PipelineError(
                f"{override.get_key_element()} has an interval, of which a sweep cannot run every value; list some, or "
                "search it with hydra/sweeper=optuna"
            )
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.get_value_element_as_str()]


def _narrowed(grid: Sequence[Override], asked: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Only the values asked for; None if a key is left without any."""
    found = []
    for override in grid:
        key, values = override.get_key_element(), _choices(override)
        if key in asked:
            values = [value for value in values if value in asked[key]]
            if not values:
                return None
        found.append(f"{key}={','.join(values)}")
    return found


def _overrides(grid: Mapping[str, Any]) -> list[str]:
    return with_open_keys([f"{key}={_joined(value)}" for key, value in grid.items()])


def _joined(value: Any) -> str:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return ",".join(map(str, value)) if several else str(value)


def register() -> None:
    """Make `hydra/sweeper=grids` known to Hydra."""
    sys.modules[NAMESPACE] = sys.modules[__name__]
    Plugins.instance().register(GridSweeper)
    ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridSweeperConf, provider="segquant")
