"""One table model, and a renderer for each format."""
