"""Makes this project's launchers known to Hydra."""

from __future__ import annotations

import sys

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from segquant_bench.pipelines.sweeps.ray_launcher import RayLauncher
from segquant_bench.pipelines.sweeps.submitit_launcher import SubmititLauncher

NAMESPACE = "hydra_plugins.segquant_launchers"
"""Hydra instantiates plugins of its own namespace only, so this module is put there under this name."""
REPLACED = ("joblib", "submitit_local", "submitit_slurm")
"""Launchers of Hydra's plugins for which conf/hydra/launcher has files of ours."""


def register() -> None:
    sys.modules[NAMESPACE] = sys.modules[__name__]
    plugins = Plugins.instance()  # which lets every plugin that is installed store its configuration
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in REPLACED:  # Hydra would take it for the schema of our file
        stored.pop(f"{name}.yaml", None)
    for launcher in (SubmititLauncher, RayLauncher):
        launcher.__module__ = NAMESPACE
        plugins.register(launcher)
