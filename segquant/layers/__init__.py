"""QuantLinear and QuantConv2d: buffers and forward."""
