"""The benchmark: a diffusers pipeline is calibrated, quantized, sampled and judged."""
