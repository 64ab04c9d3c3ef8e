"""How long a service keeps others waiting: `python tests/waiting.py HOST PORT PID` asks `/livez` until its input ends.

It prints the longest wait in seconds. A process of its own, so that no other thread holds it up; the time that it and
the service's loop stood in the machine's queue for a processor is told by Linux, and taken off.
"""

import http.client
import select
import sys
import time
from pathlib import Path


def main() -> None:
    host, port, pid = sys.argv[1:]
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    worst = 0.0
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        queued, began = _queued(pid), time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        took = time.perf_counter() - began
        worst = max(worst, took - (_queued(pid) - queued))
    sys.stdout.write(str(worst))


def _queued(pid: str) -> float:
    """Seconds that the loop of that process and this one were ready to run, and did not."""
    return sum(int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) for one in (pid, "self")) / 1e9


if __name__ == "__main__":
    main()
