"""A stand-in for OpenAI's Responses API: no model, no network, real images. For development and tests only."""
