"""Easel: the backend of a multi-tenant agents SaaS whose agents draw."""


class EaselError(Exception):
    """A failure whose message is one sentence for the user; it stands here, where importing it loads nothing else."""
