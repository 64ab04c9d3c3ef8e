"""`easel users`."""

import typer

from app.commands.operator import operate, show
from app.identity import mails
from app.identity.audit import OPERATOR
from app.tenants import operation


def list_all(*, as_json: bool) -> None:
    show(operate(lambda _, database: operation.list_users(database)), as_json=as_json)


def disable(*, email: str, disabled: bool, as_json: bool) -> None:
    show([operate(lambda _, database: operation.disable_user(database, email, disabled=disabled))], as_json=as_json)


def reset_password(*, email: str, as_json: bool) -> None:
    made = operate(lambda settings, database: mails.make_reset(database, settings, email, by=OPERATOR))
    if as_json:
        show([vars(made)], as_json=True)
        return
    typer.echo(f"Good once, until {made.expires_at:%Y-%m-%d %H:%M} UTC:")
    typer.echo(made.link or made.token)
