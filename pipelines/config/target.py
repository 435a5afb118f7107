"""What `quantizer._target_` may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segquant_bench.pipelines.config.labels import PRESETS
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.runtime.own_code import TARGET, is_own

PEERS = "segquant_bench.pipelines.peers"
_DUNDER = re.compile("__.*__")
_SHOWN = 100


def check_target(quantizer: Any) -> None:
    """PipelineError for none, for what is no path of a function, and for one of this project's that makes no method."""
    if not isinstance(quantizer, Mapping) or not isinstance(quantizer.get(TARGET), str):
        raise PipelineError(
            "the quantizer has no _target_; choose one of conf/quantizer, for example quantizer=rtn, or give "
            "quantizer._target_=their_pkg.module.function"
        )
    target = quantizer[TARGET]
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() and not _DUNDER.fullmatch(part) for part in parts):
        raise PipelineError(
            f"quantizer.{TARGET}={one_line(target)[:_SHOWN]} is no dotted path of a function; give for example "
            f"quantizer.{TARGET}=their_pkg.module.function"
        )
    if not is_own(target) and target.rpartition(".")[0] not in (PRESETS, PEERS):
        raise PipelineError(
            f"quantizer.{TARGET}={target[:_SHOWN]} is no quantizer; it must name a function of {PRESETS} or {PEERS}"
        )
