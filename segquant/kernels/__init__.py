"""Ways to run a quantized linear."""
