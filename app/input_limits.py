"""What one request may bring: the same for every tenant, checked where it arrives and told by `GET /v1/limits`."""

# As many images as the provider accepts in one request.
MAX_INPUTS = 16
MAX_INPUT_CHARACTERS = 32_000
# A pattern for what Postgres takes as a text.
STORABLE = r"^[^\x00]*$"

UPLOAD_TYPES = ("image/png", "image/jpeg", "image/webp")
# The largest photos of today's phones; six times the largest image that the provider makes.
MAX_PIXELS = 48 * 1024**2
