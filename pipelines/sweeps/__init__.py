"""A sweep's jobs: what is recorded of them while they run, where they run, and which are tried again."""
