"""Quantized components beside the denoiser."""
