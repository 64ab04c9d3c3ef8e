"""Easel: the backend of a multi-tenant agents SaaS whose agents draw."""

__version__ = "0.1.0"


class EaselError(Exception):
    """A failure whose message is one sentence for the user; it stands here, where importing it loads nothing else."""
