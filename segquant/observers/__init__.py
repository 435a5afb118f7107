"""One pass over the calibration inputs: running statistics of every layer's input."""
