"""ONNX files of quantized models."""
