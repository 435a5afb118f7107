"""results.json, a W&B run, a sweep's report."""
