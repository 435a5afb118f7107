"""Capture a model's graph without its weights: record its operators, or export it."""
