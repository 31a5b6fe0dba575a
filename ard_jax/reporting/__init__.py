"""Tables, plots and pages out of evaluation records; no networks, no models, no JAX."""
