"""What a run is: the schema of a configuration, its checks, and what is built from it."""
