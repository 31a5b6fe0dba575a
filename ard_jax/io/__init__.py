"""Files, the cache folder, metrics and progress."""
