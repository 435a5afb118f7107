"""Read cuts and activations off a graph."""
