"""The `easel` command: names, options and help. `app/commands/` does the work, loaded when a command is called."""

import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from typer.exceptions import Abort, TyperException

from app import EaselError, __version__
from app.allocator import return_freed_memory
from app.exits import end_by_exception, exit_with_fault, exit_with_usage, keep_loopback_direct
from app.loading import load_command

DEMO_PROMPT = "a gray tabby cat hugging an otter with an orange scarf"

cli = typer.Typer(add_completion=False, no_args_is_help=True, help="The backend of an agents SaaS whose agents draw.")

Host = Annotated[str, typer.Option(help="The address to listen on.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
TenantId = Annotated[UUID, typer.Argument(metavar="TENANT", help="Its id.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="The port to listen on.")]
ServedPort = Annotated[
    int | None, typer.Option(min=0, max=65_535, help="The port to listen on.", show_default="PORT, else 8000")
]


class ExportFormat(StrEnum):
    JSONL = "jsonl"
    STRIPE = "stripe"


def main() -> None:
    """Run a command; a fault is one plain sentence on standard error and a non-zero exit."""
    end_by_exception()
    keep_loopback_direct()
    try:
        sys.exit(cli(standalone_mode=False))
    except TyperException as error:
        exit_with_usage(error)
    except Abort:
        sys.exit(1)
    except EaselError as error:
        sys.exit(f"easel: {error}")
    except Exception as error:
        exit_with_fault(error)


def _run(command: str, function: str = "run", **options: object) -> None:
    return_freed_memory()
    getattr(load_command(command), function)(**options)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"easel {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)]


@cli.callback()
def options(version: Version = False) -> None:
    pass


@cli.command()
def serve(host: Host = "127.0.0.1", port: ServedPort = None) -> None:
    """Serve the API (and, unless EMBEDDED_WORKER=false, execute runs)."""
    _run("serve", host=host, port=port)


@cli.command()
def worker() -> None:
    """Execute runs and housekeeping; needs REDIS_URL."""
    _run("worker")


@cli.command()
def migrate(
    roles: Annotated[
        bool, typer.Option("--roles", help="Only print the SQL with which a DBA makes the roles and the login.")
    ] = False,
) -> None:
    """Bring the database to the newest schema; safe to repeat, and several at a time."""
    _run("migrate", roles=roles)


BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="In pg_dump's custom format.")]


@cli.command()
def backup(file: BackupFile) -> None:
    """Write every row of the database to a new file, and check that they are all there; images lie in the store."""
    _run("backup", file=file)


@cli.command()
def restore(file: BackupFile) -> None:
    """Fill an empty database from a backup, on this server or on one that has never seen Easel."""
    _run("backup", "run_restore", file=file)


@cli.command()
def demo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=DEMO_PROMPT)
    ] = None,
) -> None:
    """One designer chat, from sign-up to the saved image."""
    _run("demo", prompt=" ".join(words or [DEMO_PROMPT]))


@cli.command()
def doctor() -> None:
    """Check settings, agents, database, broker and storage; say what is wrong and how to mend it."""
    _run("doctor")


@cli.command()
def reconcile(
    apply: Annotated[bool, typer.Option("--apply", help="Put right what is found; else nothing changes.")] = False,
) -> None:
    """Compare the store's objects with the rows; one without a row is marked, and deleted after an hour or more."""
    _run("reconcile", apply=apply)


@cli.command()
def offline(port: Port = 8001) -> None:
    """Serve the offline simulator of the Responses API, for development and tests."""
    _run("offline", port=port)


@cli.command()
def settings() -> None:
    """Print every setting with its default, to be kept as .env."""
    _run("settings")


@cli.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    _run("openapi")


tenants = typer.Typer(no_args_is_help=True, help="Look at tenants, suspend them, change their plan.")
users = typer.Typer(no_args_is_help=True, help="Look at users, disable them, help with a forgotten password.")
keys = typer.Typer(no_args_is_help=True, help="Look at the API keys of a tenant, and revoke them.")
plans = typer.Typer(no_args_is_help=True, help="See and set what the plans allow.")
usage = typer.Typer(help="See what tenants have used, and hand it to a billing system.")
ledger = typer.Typer(no_args_is_help=True, help="Look whether the books are right.")
cli.add_typer(tenants, name="tenants")
cli.add_typer(users, name="users")
cli.add_typer(keys, name="keys")
cli.add_typer(plans, name="plans")
cli.add_typer(usage, name="usage")
cli.add_typer(ledger, name="ledger")


@tenants.command("list")
def list_tenants(as_json: AsJson = False) -> None:
    """List all tenants."""
    _run("tenants", "list_all", as_json=as_json)


@tenants.command("show")
def show_tenant(tenant: TenantId, as_json: AsJson = False) -> None:
    """Show a tenant and its members."""
    _run("tenants", "show_one", tenant_id=tenant, as_json=as_json)


@tenants.command("suspend")
def suspend_tenant(tenant: TenantId, as_json: AsJson = False) -> None:
    """Close a tenant to its members and keys, from their next request on."""
    _run("tenants", "suspend", tenant_id=tenant, suspended=True, as_json=as_json)


@tenants.command("resume")
def resume_tenant(tenant: TenantId, as_json: AsJson = False) -> None:
    """Open a suspended tenant again."""
    _run("tenants", "suspend", tenant_id=tenant, suspended=False, as_json=as_json)


@tenants.command("plan")
def change_plan(tenant: TenantId, name: str, as_json: AsJson = False) -> None:
    """Change a tenant's plan."""
    _run("tenants", "plan", tenant_id=tenant, name=name, as_json=as_json)


@tenants.command("retain")
def retain(as_json: AsJson = False) -> None:
    """Delete the conversations that are older than their tenant keeps them; a worker does so every day."""
    _run("tenants", "retain", as_json=as_json)


@users.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List all users."""
    _run("users", "list_all", as_json=as_json)


@users.command("disable")
def disable_user(email: str, as_json: AsJson = False) -> None:
    """Refuse everything that a user is signed in with, from the next request on."""
    _run("users", "disable", email=email, disabled=True, as_json=as_json)


@users.command("enable")
def enable_user(email: str, as_json: AsJson = False) -> None:
    """Let a disabled user in again."""
    _run("users", "disable", email=email, disabled=False, as_json=as_json)


@users.command("reset-password")
def reset_password(email: str, as_json: AsJson = False) -> None:
    """Print a link that sets a new password, good once for an hour."""
    _run("users", "reset_password", email=email, as_json=as_json)


@keys.command("list")
def list_keys(tenant: TenantId, as_json: AsJson = False) -> None:
    """List a tenant's API keys."""
    _run("keys", "list_all", tenant_id=tenant, as_json=as_json)


@keys.command("revoke")
def revoke_key(key: Annotated[UUID, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Revoke an API key, from the next request on."""
    _run("keys", "revoke", key_id=key, as_json=as_json)


PlanName = Annotated[str, typer.Argument(metavar="NAME", help="The plan's.")]


@plans.command("list")
def list_plans(as_json: AsJson = False) -> None:
    """List all plans with their limits."""
    _run("plans", "list_all", as_json=as_json)


@plans.command("show")
def show_plan(name: PlanName, as_json: AsJson = False) -> None:
    """Show a plan's limits."""
    _run("plans", "show_one", name=name, as_json=as_json)


@plans.command("set")
def set_plan(
    name: PlanName,
    limits: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="`unlimited` takes a limit away.")],
    as_json: AsJson = False,
) -> None:
    """Set limits of a plan, or make a plan; they hold from the next request on."""
    _run("plans", "change", name=name, limits=limits, as_json=as_json)


@usage.callback(invoke_without_command=True)
def sum_usage(
    context: typer.Context,
    tenant: Annotated[UUID | None, typer.Option(help="Its id; without it all of them.")] = None,
    month: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m"], help="In UTC; without it the present one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See what tenants have used in a month."""
    if context.invoked_subcommand is None:
        _run("usage", tenant_id=tenant, month=month, as_json=as_json)


@usage.command("export")
def export_usage(
    after: Annotated[UUID | None, typer.Option(help="The id of the last line of the export before.")] = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="How a line is written.")] = ExportFormat.JSONL,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
) -> None:
    """Write the ledger's entries by id, one a line, but for those of the last minute."""
    _run("usage", "export", after=after, form=form, as_json=as_json)


@ledger.command("verify")
def verify_ledger(as_json: AsJson = False) -> None:
    """Check the books; list the calls whose cost is an estimate."""
    _run("ledger", "verify", as_json=as_json)


if __name__ == "__main__":
    main()
