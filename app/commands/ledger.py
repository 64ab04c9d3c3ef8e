"""`easel ledger`."""

import json
from dataclasses import asdict

import typer

from app.commands.operator import operate, show
from app.usage import operation


def verify(*, as_json: bool) -> None:
    """Exits with 1 where something is wrong."""
    verified = operate(lambda _, database: operation.verify(database))
    if as_json:
        typer.echo(json.dumps(asdict(verified), default=str, indent=2))
    else:
        typer.echo("Estimated, to be set beside the provider's bill:")
        show(verified.estimated, as_json=False)
        typer.echo("\nWrong:")
        show(verified.faults, as_json=False)
    raise typer.Exit(bool(verified.faults))
