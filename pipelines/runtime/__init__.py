"""The stage cache, what work costs, where it ran, and digests."""
