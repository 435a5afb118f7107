"""What configurations refer to by `${…}`, and the schema's name, made known to Hydra."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from segquant_bench.pipelines.config import grids, search
from segquant_bench.pipelines.config.engine import AUTO
from segquant_bench.pipelines.config.help import options_page
from segquant_bench.pipelines.config.labels import label_of
from segquant_bench.pipelines.config.precision import precision_label
from segquant_bench.pipelines.config.schema import DENOISER, RunConfig
from segquant_bench.pipelines.config.shapes import check_list
from segquant_bench.pipelines.config.target import check_target
from segquant_bench.pipelines.runtime.paths import zoo_path
from segquant_bench.pipelines.sweeps import plugins


def register() -> None:
    """Make the schema known to Hydra as `schema`, and five resolvers to OmegaConf.

    `${zoo:NAME}`: path of a shipped file; `${method:}`: quantizer and correction; `${precision:NAME}`: see
    `precision_label`; `${engine:}`: "_NAME" of another engine than auto; `${options:}`: options for --help.
    """
    grids.register()
    search.register()
    plugins.register()
    ConfigStore.instance().store(name="schema", node=RunConfig)
    OmegaConf.register_new_resolver("zoo", lambda name: str(zoo_path(name)), replace=True)
    OmegaConf.register_new_resolver("options", options_page, replace=True)
    OmegaConf.register_new_resolver("method", method_label, replace=True)
    OmegaConf.register_new_resolver("precision", precision_label, replace=True)
    OmegaConf.register_new_resolver("engine", _engine_label, replace=True)


def method_label(*, _root_: DictConfig) -> str:
    """The quantizer's name, "+NAME" for another correction and further components.

    "rtn@controlnet" leaves the denoiser out, "rtn+controlnet" does not. PipelineError for a quantizer that is none.
    """
    quantizer, correction = _root_.quantizer, _root_.correction.name
    check_target(quantizer)
    name = label_of(quantizer)
    if name == "none":
        return name
    check_list(_root_, RunConfig, "", "quantize")  # or the name could not be told
    added = [] if correction in ("none", name) else [correction]
    parts = [part for part in _root_.quantize if part != DENOISER]
    if DENOISER not in _root_.quantize:
        return f"{name}@{'+'.join(parts)}"
    return "+".join([name, *added, *parts])


def _engine_label(*, _root_: DictConfig) -> str:
    name = _root_.run.name
    return "" if name == AUTO else f"_{name}"
