"""How long a service keeps others waiting: `python tests/waiting.py HOST PORT PID` asks `/livez` until its input ends.

It prints the third longest wait in seconds: a virtual machine itself stands still now and then, and a service that
keeps others waiting does so again and again. A process of its own, so that no other thread holds it up; the time that
it and the service's loop stood in the queue for a processor is known to Linux, and taken off.
"""

import http.client
import select
import sys
import time
from pathlib import Path


def main() -> None:
    host, port, pid = sys.argv[1:]
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    longest = [0.0] * 3
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        before, began = queued(pid), time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        took = time.perf_counter() - began
        longest = sorted([*longest, took - (queued(pid) - before)])[1:]
    sys.stdout.write(str(longest[0]))


def queued(pid: int | str) -> float:
    """Seconds that the loop of that process and this one were ready to run, and did not."""
    return sum(int(Path(f"/proc/{one}/schedstat").read_text().split()[1]) for one in (pid, "self")) / 1e9


if __name__ == "__main__":
    main()
