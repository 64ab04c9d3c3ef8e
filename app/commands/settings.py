"""`easel settings`."""

from pathlib import Path

import typer

# In a checkout, and in the package.
PLACES = (Path(__file__).parents[2] / ".env.example", Path(__file__).with_name("env.example"))


def run() -> None:
    path = next(path for path in PLACES if path.exists())
    typer.echo(path.read_text(), nl=False)
