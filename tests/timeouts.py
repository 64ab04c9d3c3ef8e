"""How many seconds tests wait, and how many a promise grants: in one place, for a machine that does nothing else.

`SCALE` multiplies them all: tests that run side by side share the processors, and are granted twice the time; on a slow
machine TEST_TIME_SCALE says how much. `./just prove` runs one test at a time, so that promises are kept to the second.
"""

import os
import time
from collections.abc import Callable

SCALE = float(os.environ.get("TEST_TIME_SCALE", "2" if "PYTEST_XDIST_WORKER" in os.environ else "1"))

# When a test gives up waiting.
SERVER_START = 20 * SCALE
PROCESS_START = 60 * SCALE
STOP = 10 * SCALE
PATIENCE = 30 * SCALE
"""For a run to end, an image to be stored, a page to load."""

# What is promised.
ANSWER = 10 * SCALE
"""Of any endpoint, whatever hangs."""
ALIVE = 1 * SCALE
"""Of `/livez`, and of any endpoint while no part of the service is away."""
TEXT_END = 5 * SCALE
"""How late an unavailable storage may make the end of a text."""
STORED_AFTER_OUTAGE = 60 * SCALE
DELIVERED_AFTER_OUTAGE = 30 * SCALE
RECOVERY = 2 * SCALE
"""After a restart of Postgres."""
FAIR_START = 2 * SCALE
"""Of a tenant's first run, behind another's long queue."""
MEANWHILE = 5 * SCALE
"""For a whole run with an image, while another run of the worker stores a thousand."""
CANCELLED = 1 * SCALE
"""Until the provider is stopped."""
DRAINED = 5 * SCALE
"""From SIGTERM to the end of a process with open streams."""
IDLE_EXIT = 3 * SCALE
NOTHING_LEAKED = 5 * SCALE
LOOP_STALL = 0.05 * SCALE


def wait_until(condition: Callable[[], bool], seconds: float = 2 * PATIENCE) -> None:
    """For what the service does soon after it has answered."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
