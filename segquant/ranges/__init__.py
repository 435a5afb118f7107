"""Ranges that scales are taken from: the maximum, a percentile, the least squared error."""
