"""Transform a layer before it is quantized: tensors in, tensors out."""
