"""Where the static graph cuts a layer (SegLinear, arXiv 2507.14811)."""
