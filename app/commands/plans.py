"""`easel plans`."""

from collections.abc import Mapping, Sequence

from app.commands.operator import operate, show
from app.usage import plans


def list_all(*, as_json: bool) -> None:
    _show(operate(lambda _, database: plans.list_all(database)), as_json=as_json)


def show_one(*, name: str, as_json: bool) -> None:
    _show([operate(lambda _, database: plans.show(database, name))], as_json=as_json)


def change(*, name: str, limits: Sequence[str], as_json: bool) -> None:
    _show([operate(lambda _, database: plans.change(database, name, limits))], as_json=as_json)


def _show(rows: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    """For people a line for each limit, a column for each plan."""
    if as_json:
        show(rows, as_json=True)
        return
    lines = [
        {"limit": key, **{str(row["name"]): plans.UNLIMITED if row[key] is None else row[key] for row in rows}}
        for key in rows[0]
        if key != "name"
    ]
    show(lines, as_json=False)
