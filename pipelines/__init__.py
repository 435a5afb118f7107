"""The benchmark: a diffusers pipeline is calibrated, quantized, sampled and judged, stage by stage."""
