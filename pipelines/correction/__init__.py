"""Corrections of a quantized denoiser's prediction while sampling."""
