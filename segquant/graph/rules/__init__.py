"""Read cuts and activations off a captured graph."""
