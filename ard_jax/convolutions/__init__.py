"""Convolutions in the forms that XLA:CPU runs fast."""
