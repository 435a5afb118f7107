"""Ways to run a quantized linear."""

# importing a backend registers it
from segquant.kernels.cpu import backend as _cpu  # noqa: F401
