"""What to do with a model and with each of its layers."""
