"""Ways to run a quantized linear."""

# importing a backend registers it
from segquant.kernels import cuda as _cuda  # noqa: F401
from segquant.kernels.cpu import backend as _cpu  # noqa: F401
from segquant.kernels.triton import backend as _triton  # noqa: F401
