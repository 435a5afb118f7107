"""What several stages share: their inputs, quantized models, segments, metrics asked for, the user's own code."""
