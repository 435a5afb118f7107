"""Cache, costs, provenance, digests, the user's code."""
