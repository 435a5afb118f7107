"""What leaves the library: files of other tools, and running them."""
