"""What is done to a layer's input, and undone in its weight: smoothing, rotation, the low-rank branch."""
