"""Serves the demo's eight adapters, and the bare base, from one batch. First: make demo."""

from pefx.config import ServeConfig

config = ServeConfig(name="serve_users", base="assets/base", catalog="runs/demo/catalog", slots=8, max_rank=8)
