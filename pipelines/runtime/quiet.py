"""Drops other packages' lines about an absent GPU."""

from __future__ import annotations

import logging

NOT_OURS = {
    # torchao, which diffusers imports, registers its enumerations in a way that torch 2.14 no longer needs.
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),
    # modelopt and quanto can build CUDA kernels; on a CPU theirs are plain PyTorch.
    "torch.utils.cpp_extension": ("No CUDA runtime is found",),
    # Only kernels written in triton are not counted, and there are none on a CPU.
    "torch.utils.flop_counter": ("triton not found",),
    # torchao's own kernels are for GPUs, and built for one version of torch; it has others in plain PyTorch.
    "torchao": ("Skipping import of cpp extensions", "Failed to load"),
    # bitsandbytes asks a hub for a kernel on CPUs with AVX512-BF16; the peers do without it.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
    # diffusers looks for tensors that later releases of torchao do not have; models serialized with them are refused.
    "diffusers.quantizers.torchao.torchao_quantizer": ("Unable to import `torchao` Tensor objects",),
    # The first figure in a new home directory; takes a second or two.
    "matplotlib.font_manager": ("generated new fontManager",),
}


class _Without(logging.Filter):
    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(words in message for words in self.words)


def quieten_absent_gpu() -> None:
    """Drop the lines of NOT_OURS; call before the packages are imported."""
    for name, words in NOT_OURS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(words))
