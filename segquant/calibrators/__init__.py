"""Pick weight scales and rounded weights: tensors in, tensors out."""
