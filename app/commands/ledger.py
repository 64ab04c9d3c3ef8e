"""`easel ledger`."""

from dataclasses import asdict

import typer

from app.commands.operator import operate, show, show_json
from app.usage import operation


def verify(*, as_json: bool) -> None:
    """Exits with 1 where something is wrong."""
    verified = operate(lambda _, database: operation.verify(database))
    if as_json:
        show_json(asdict(verified))
        raise typer.Exit(bool(verified.faults))
    if verified.estimated:
        typer.echo("Estimated, to be set beside the provider's bill:")
        show(verified.estimated, as_json=False)
        typer.echo()
    if verified.faults:
        typer.echo("Wrong:")
        show(verified.faults, as_json=False)
    else:
        typer.echo("Nothing is wrong.")
    raise typer.Exit(bool(verified.faults))
