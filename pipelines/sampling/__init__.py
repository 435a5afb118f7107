"""Run a pipeline for pictures or denoiser inputs."""
