"""Other tools as quantizers: `pip install '.[peers]'` in a clone."""

from __future__ import annotations

from segquant_bench.pipelines.peers.from_bitsandbytes import bnb_fp4, bnb_int8, bnb_nf4
from segquant_bench.pipelines.peers.from_gguf import gguf
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
from segquant_bench.pipelines.peers.from_torchao_formats import torchao_fp8, torchao_intx, torchao_mx, torchao_nvfp4
from segquant_bench.pipelines.peers.peer import Peer, tensors_digest

__all__ = [
    "Peer",
    "bnb_fp4",
    "bnb_int8",
    "bnb_nf4",
    "gguf",
    "modelopt_awq",
    "modelopt_fp8",
    "modelopt_int8",
    "modelopt_smoothquant",
    "modelopt_svdquant",
    "quanto",
    "sdnq",
    "tensors_digest",
    "torchao_fp8",
    "torchao_int4",
    "torchao_int8_dynamic",
    "torchao_int8_static",
    "torchao_intx",
    "torchao_mx",
    "torchao_nvfp4",
]
