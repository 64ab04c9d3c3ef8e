"""`easel demo`: its parts start while what it does with them is loaded."""

import sys

from app.commands import start
from app.embedded import starting_parts
from app.loading import load


def run(prompt: str) -> None:
    settings = start("warning")
    with starting_parts(settings) as parts:
        demonstration = load("app.commands.demonstration")
        done = demonstration.demonstrate(settings, parts(), prompt)
    if not done:
        sys.exit(1)
