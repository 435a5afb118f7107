"""The `cpu` backend."""
