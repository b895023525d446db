"""`nightjar keys create`, `list`, `rotate`, `revoke`: who may call the API, and how much."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_repo.contracts.api_keys import READ, SCOPES, ApiKey
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.times import format_timestamp, from_micros
from infra.cli.output import emit, err, out

if TYPE_CHECKING:
    from infra.api_keys import ApiKeys

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The 12 digits after nj_, as `nightjar keys list` shows.")]
_HOUR_MICROS = 3_600_000_000


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="API keys: make, list, rotate, revoke.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("rotate")(rotate)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def create(
    name: Annotated[str, typer.Argument(help="Who or what will use it, for people.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help=f"What it may: {', '.join(SCOPES)}; repeat for several.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests a second that it may make. Default: any.")
    ] = None,
    burst: Annotated[
        int | None, typer.Option("--burst", help="Requests at once after a pause. Default: twice the rate.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    environment, now = _environment(), _now()
    with _keys(environment) as keys:
        key, record = keys.create(
            name, scope or [READ], requests_per_second=rate, burst=burst, by=getpass.getuser(), at_micros=now
        )
    _audit(environment, "create-key", record, now)
    words = f"{record.key_id} ({record.name}) may {', '.join(record.scopes)}{_limit_of(record)}."
    emit({"key": key, **_described(record, now)}, as_json=as_json, render=lambda: _show_key(key, words))


def list_keys(as_json: AsJson = False) -> None:
    """List all keys, also those that are no longer valid; never the keys themselves."""
    environment, now = _environment(), _now()
    with _keys(environment) as keys:
        found = keys.all()
    emit({"keys": [_described(key, now) for key in found]}, as_json=as_json, render=lambda: _show_table(found, now))


def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", min=0, help="How long the old key goes on working.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Make a new key with the name, scopes and limit of this one, which ends after the overlap."""
    environment, now = _environment(), _now()
    with _keys(environment) as keys:
        key, record, old = keys.rotate(
            key_id, overlap_micros=round(overlap_hours * _HOUR_MICROS), by=getpass.getuser(), at_micros=now
        )
    _audit(environment, "rotate-key", record, now)
    words = f"{record.key_id} replaces {old.key_id} ({old.name}), which ends at {_said(old.expires_at)}."
    emit({"key": key, **_described(record, now)}, as_json=as_json, render=lambda: _show_key(key, words))


def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """End a key at once: every worker refuses it within a second."""
    environment, now = _environment(), _now()
    with _keys(environment) as keys:
        record, was_valid = keys.revoke(key_id, at_micros=now)
    if was_valid:
        _audit(environment, "revoke-key", record, now)
    words = "is revoked" if was_valid else "was not valid any more; nothing is changed"
    emit(
        {**_described(record, now), "changed": was_valid}, as_json=as_json,
        render=lambda: out.print(f"{record.key_id} ({record.name}) {words}.", markup=False),
    )  # fmt: skip


@contextmanager
def _keys(environment: Environment) -> Iterator[ApiKeys]:
    import redis
    from redis.exceptions import RedisError

    from infra.api_keys import ApiKeys

    try:
        with redis.Redis.from_url(environment.redis_log_url, socket_timeout=5) as log:
            yield ApiKeys(log, tenant=environment.tenant, random=os.urandom)
    except RedisError as error:
        raise DependencyError(
            f"Redis `log`, which keeps the keys, does not answer ({type(error).__name__}): see `nightjar status`"
        ) from error


def _audit(environment: Environment, action: str, key: ApiKey, now: int) -> None:
    from infra.audit import write_audit

    line = {"at": _said(now), "action": action, "actor": getpass.getuser(), "key_id": key.key_id, "name": key.name,
            "scopes": list(key.scopes), "replaces": key.replaces}  # fmt: skip
    write_audit(environment, line)


def _described(key: ApiKey, now: int) -> dict[str, Any]:
    return {
        "key_id": key.key_id, "name": key.name, "scopes": list(key.scopes), "state": _state(key, now),
        "requests_per_second": key.requests_per_second, "burst": key.burst, "created_at": _said(key.created_at),
        "created_by": key.created_by, "expires_at": _said(key.expires_at), "revoked_at": _said(key.revoked_at),
        "replaces": key.replaces,
    }  # fmt: skip


def _state(key: ApiKey, now: int) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if not key.is_valid_at(now):
        return "ended"
    return "valid" if key.expires_at is None else "ends"


def _limit_of(key: ApiKey) -> str:
    return "" if key.requests_per_second is None else f", {key.requests_per_second:g} requests/s (burst {key.burst})"


def _show_key(key: str, words: str) -> None:
    # the key alone on stdout, so that a script can take it
    print(key)
    err.print(words, markup=False)
    err.print("It is shown this once; only its hash is kept.")


def _show_table(keys: list[ApiKey], now: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not keys:
        out.print("There is no key yet: nightjar keys create NAME --scope read")
        return
    table = Table("key id", "name", "scopes", "limit", "made", "state", box=None)
    for key in keys:
        state = _state(key, now)
        if state != "valid":
            state = f"{state} {(_said(key.revoked_at) or _said(key.expires_at) or '')[:16].replace('T', ' ')}"
        limit = "" if key.requests_per_second is None else f"{key.requests_per_second:g}/s, {key.burst}"
        made = (_said(key.created_at) or "")[:10]
        table.add_row(key.key_id, escape(key.name), " ".join(key.scopes), limit, made, state)
    out.print(table)


def _said(micros: int | None) -> str | None:
    return None if micros is None else format_timestamp(from_micros(micros))


def _now() -> int:
    return time.time_ns() // 1000


def _environment() -> Environment:
    from infra.local.variables import stack_environment

    return stack_environment(os.environ)
