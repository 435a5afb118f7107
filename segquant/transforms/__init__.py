"""Smoothing, rotation, and the low-rank branch."""
