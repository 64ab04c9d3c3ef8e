"""Draws images with Pillow, from a prompt alone or by changing given ones; it knows nothing of the API."""
