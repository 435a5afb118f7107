"""Ways to run a quantized linear; one signature, chosen explicitly."""
