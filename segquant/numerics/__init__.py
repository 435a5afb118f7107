"""Number formats, their arithmetic, and layouts."""
