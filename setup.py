"""For tools that still ask for this file; pyproject.toml says everything."""

from setuptools import setup

setup()
