"""A run's configuration, checked before anything is loaded."""
