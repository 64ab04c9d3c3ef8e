"""`easel reconcile`."""

import asyncio

import typer

from app.commands import start
from app.embedded import running_database
from app.main import reconcile_store


def run(*, apply: bool) -> None:
    settings = start("error")
    with running_database(settings) as url:
        report = asyncio.run(reconcile_store(settings, url, apply=apply))
    typer.echo(f"{'':32}{'found':>8}{'marked':>8}{'done':>8}")
    for kind, count in report.items():
        typer.echo(f"{kind:32}{count.found:8}{count.marked:8}{count.done:8}")
    if not apply:
        typer.echo("Nothing was changed: `easel reconcile --apply` does it.")
