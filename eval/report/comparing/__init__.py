"""Two runs at a time: which one is better."""
