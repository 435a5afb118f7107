"""Running statistics of every layer's input, in one pass."""
