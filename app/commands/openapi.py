"""`easel openapi`."""

import json

import typer

from app.commands import start
from app.embedded import Parts
from app.main import create_app


def run() -> None:
    app = create_app(start(), Parts("postgresql://", None, "none"))
    typer.echo(json.dumps(app.openapi(), indent=2))
