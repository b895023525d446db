"""`nightjar events balance`: do the numbers of the event path add up?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.contracts.environment import Environment
from infra.cli.output import ExitCode, emit, out, step
from infra.local.variables import known_addresses

if TYPE_CHECKING:
    from infra.event_balance import EventBalance

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
PATIENCE_SECONDS = 30


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(name="events", help="The event path.", no_args_is_help=True)
    group.callback()(_events)
    group.command("balance")(balance)
    app.add_typer(group)


def _events() -> None:
    """The event path."""


def balance(as_json: AsJson = False) -> None:
    """Received = accepted + duplicate + quarantined; accepted = applied + dead-lettered. Exit code 1 when not."""
    import redis

    from infra.event_balance import balance_events

    env = Environment.from_mapping(known_addresses(os.environ))
    with (
        redis.Redis.from_url(env.redis_log_url, socket_timeout=PATIENCE_SECONDS) as log,
        redis.Redis.from_url(env.redis_online_url, socket_timeout=PATIENCE_SECONDS) as online,
        step("counting", quiet=as_json),
    ):
        found = balance_events(env, log, online)
    emit(found.to_mapping(), as_json=as_json, render=lambda: _print(found))
    if not found.holds:
        raise typer.Exit(ExitCode.FAILED)


def _print(found: EventBalance) -> None:
    for identity in found.identities:
        parts = " + ".join(f"{count:,} {name}" for name, count in identity.parts.items())
        if identity.left is None:
            out.print(f"[yellow]?[/] {identity.name} = {parts} (this server does not count what was logged)")
        elif identity.holds:
            out.print(f"[green]ok[/] {identity.name} {identity.left:,} = {parts}")
        else:
            gap = identity.left - identity.right
            out.print(f"[bold red]no[/] {identity.name} {identity.left:,}, but {parts}: {gap:+,}")
