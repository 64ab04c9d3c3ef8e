"""`easel serve`."""

import sys

import typer

from app.commands import start
from app.embedded import running_parts
from app.server import Server


def run(host: str, port: int) -> None:
    settings = start()
    with running_parts(settings) as parts:
        server = Server(settings, parts, host=host, port=port)
        typer.echo(f"Easel listens on http://{host}:{port} (API documentation under /docs).", err=True)
        server.run()
        if not server.started:
            sys.exit(1)
