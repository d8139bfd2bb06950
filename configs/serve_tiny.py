"""Serves the shipped base alone: no catalog, no adapters."""

from pefx.config import ServeConfig

config = ServeConfig(name="serve_tiny", base="assets/base")
