"""Quantize models whose blocks are read from disk as they run."""
