"""Solve one layer from its weight and the statistics of its input alone."""
