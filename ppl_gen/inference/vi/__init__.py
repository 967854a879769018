"""Variational inference: families of guides, objectives, and how they are optimised."""
