"""Run a pipeline: pictures out, or the inputs of its denoiser."""
