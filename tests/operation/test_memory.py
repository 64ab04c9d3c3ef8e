"""What images occupied goes back to the system, although small objects lie between them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 200
PROGRAM = f"""
import sys
from pathlib import Path
from app.allocator import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

return_freed_memory()
bytearray(3 * 2**20)  # freed at once: glibc then takes blocks of this size for common
before = resident()
images, small = [], []
for _ in range({MEGABYTES}):
    images.append(b"x" * 2**20)
    small.append(bytearray(1_000))
assert resident() - before > {MEGABYTES} * 0.9
images.clear()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_images_occupied_goes_back_to_the_system() -> None:
    command = [sys.executable, "-c", PROGRAM]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert float(kept) < MEGABYTES / 10
