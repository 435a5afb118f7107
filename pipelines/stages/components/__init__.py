"""Components beside the denoiser that are quantized: `quantize=[denoiser,text_encoder,controlnet,…]`."""
