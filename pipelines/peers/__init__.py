"""Other tools as quantizers: `pip install 'segquant[peers]'`."""

from __future__ import annotations

from segquant_bench.pipelines.peers.from_modelopt import (
    modelopt_awq,
    modelopt_fp8,
    modelopt_int8,
    modelopt_smoothquant,
    modelopt_svdquant,
)
from segquant_bench.pipelines.peers.from_quanto import quanto
from segquant_bench.pipelines.peers.from_sdnq import sdnq
from segquant_bench.pipelines.peers.from_torchao import torchao_int4, torchao_int8_dynamic, torchao_int8_static
from segquant_bench.pipelines.peers.peer import Peer, tensors_digest

__all__ = [
    "Peer",
    "modelopt_awq",
    "modelopt_fp8",
    "modelopt_int8",
    "modelopt_smoothquant",
    "modelopt_svdquant",
    "quanto",
    "sdnq",
    "tensors_digest",
    "torchao_int4",
    "torchao_int8_dynamic",
    "torchao_int8_static",
]
