"""What a run's configuration may hold, checked before anything is loaded."""
