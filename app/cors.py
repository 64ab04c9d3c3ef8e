"""Which origins' pages may call the API in development, and what its log says of the others."""

import logging
from collections.abc import Collection

log = logging.getLogger(__name__)

# Where a front end's development server is. The whole origin must match: localhost.evil.example does not.
LOCAL_ORIGINS = r"http://(localhost|127\.0\.0\.1)(:[0-9]{1,5})?"
MAX_ORIGIN_CHARACTERS = 200


def report_refused(origin: str, allowed: Collection[str]) -> None:
    """One line for each preflight: whoever looks at the log a second time finds it again below the last request."""
    # An origin is ASCII; anything else could be read by a terminal as a command.
    shown = origin[:MAX_ORIGIN_CHARACTERS].encode("ascii", "backslashreplace").decode()[:MAX_ORIGIN_CHARACTERS]
    hint = (
        f"CORS_ORIGINS={','.join(allowed)} does not list this origin: add it, after a comma."
        if allowed
        else "CORS_ORIGINS= is empty, which allows http://localhost and http://127.0.0.1 with any port, and no"
        " other origin: list there all that may call the API, separated by commas."
    )
    log.warning("cors.refused", extra={"origin": shown, "hint": hint})
