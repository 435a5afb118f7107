"""Order, groups and names of runs."""
