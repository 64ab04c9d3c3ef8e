"""`easel offline`."""

import os

from app.embedded import simulator_command
from app.settings import load_settings


def run(port: int) -> None:
    """Becomes the simulator, so that signals reach it."""
    command, folder = simulator_command(load_settings(), port)
    os.chdir(folder)
    os.execv(command[0], command)  # noqa: S606 - our own command
