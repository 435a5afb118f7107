"""Capture a model's graph without its weights."""
