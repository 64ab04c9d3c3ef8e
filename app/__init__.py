"""Easel: the backend of a multi-tenant agents SaaS whose agents draw."""
