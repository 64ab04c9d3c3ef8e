"""A stand-in for OpenAI's Responses API: no model, no network, real pictures. For development and tests only."""
