"""Marks of the schema's fields, and types that several of its records have."""

from typing import Annotated, Any

from pydantic import AfterValidator

from ard_jax.io.files import expand

# What a field changes, where it is not the training.
NOTHING: dict[str, Any] = {"changes": "nothing"}
EVALUATION: dict[str, Any] = {"changes": "evaluation"}  # what is measured at the end
# By what is found there; its checksum or identity is compared instead.
CONTENT: dict[str, Any] = {"changes": "content"}

Folder = Annotated[str, AfterValidator(expand)]
