"""`nightjar identity list`, `show`, `unmerge`: which devices are whose, and how to say that one is not."""

from __future__ import annotations

import getpass
import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, nearest
from feature_repo.contracts.events import EventType
from feature_repo.contracts.identity import NEVER, Edge, owner_at, unpack_edge
from feature_repo.contracts.keys import edges_key
from feature_repo.contracts.times import format_timestamp, from_micros, to_micros
from infra.audit import write_audit
from infra.cli.output import emit, out, step

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

APPLIED_WITHIN_SECONDS = 5.0
_POLL_SECONDS = 0.01


class Known(NamedTuple):
    """One edge as one of the two views has it: `online` (now) or `tables` (as of the last night)."""

    view: str
    anonymous_id: str
    user_id: str
    edge: Edge


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="Which devices are whose; take a wrong edge back.", no_args_is_help=True)
    group.command("list")(list_edges)
    group.command("show")(show)
    group.command("unmerge")(unmerge)
    app.add_typer(group, name="identity")


def list_edges(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many edges, those seen last first.")] = 50,
    only_undone: Annotated[bool, typer.Option("--undone", help="Only edges that somebody took back.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the edges that the last night found."""
    environment = _environment()
    found = [known for known in _in_tables(environment) if not only_undone or known.edge.undone_micros != NEVER]
    found.sort(key=lambda known: (-known.edge.last_micros, known.anonymous_id, known.user_id))
    shown = found[:limit]
    answer = {"edge_count": len(found), "edges": [_described(known) for known in shown]}

    def render() -> None:
        _show_table(shown)
        if len(shown) < len(found):
            out.print(f"{len(shown):,} of {len(found):,} edges; --limit shows more.")

    emit(answer, as_json=as_json, render=render)


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A user_id or an anonymous_id.")],
    as_json: AsJson = False,
) -> None:
    """Show all edges of one user or device: as they are now, and as the last night had them."""
    environment = _environment()
    found = [*_online(environment, name), *(known for known in _in_tables(environment) if _is_about(known, name))]
    if not found:
        raise DataError(f"nothing is known of {name!r}: no edge names it as a user or as a device", field="id")
    of_device = {known.user_id: known.edge for known in found if known.view == "online" and known.anonymous_id == name}
    owner = owner_at(of_device, time.time_ns() // 1000) if of_device else None
    answer = {"id": name, "owner_now": owner, "edges": [_described(known) for known in found]}

    def render() -> None:
        _show_table(found)
        if of_device:
            words = f"is now {owner}'s" if owner else "is nobody's now"
            out.print(f"Device {name} {words}.", markup=False)

    emit(answer, as_json=as_json, render=render)


def unmerge(
    anonymous_id: Annotated[str, typer.Argument(metavar="DEVICE", help="The anonymous_id.")],
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The user_id that it is not.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with the event and in the audit.")],
    as_json: AsJson = False,
) -> None:
    """Take an edge back: all that said so far that DEVICE is USER's was wrong.

    Answers forget it at once, the next night's tables are as if it had never been. A later login makes a new edge.
    """
    if not reason.strip():
        raise DataError("--reason says why, in words", field="reason")
    environment = _environment()
    known = _known_edge(environment, anonymous_id, user_id)
    # No sighting may lie after its undo: a device's clock can be ahead of ours.
    at = from_micros(max(time.time_ns() // 1000, known.last_micros))
    answer: dict[str, Any] = {"anonymous_id": anonymous_id, "user_id": user_id, "reason": reason, "changed": False}
    if known.is_live:
        event_id = _send(anonymous_id, user_id, at=at, reason=reason)
        started = time.perf_counter()
        line = {"at": format_timestamp(datetime.now(UTC)), "action": "unmerge", "actor": getpass.getuser(),
                "anonymous_id": anonymous_id, "user_id": user_id, "reason": reason, "event_id": event_id}  # fmt: skip
        write_audit(environment, line)
        with step("waiting for the consumer", quiet=as_json):
            is_forgotten = _wait(environment, anonymous_id, user_id, undone_micros=to_micros(at))
        waited_ms = round((time.perf_counter() - started) * 1000, 1) if is_forgotten else None
        answer |= {**line, "changed": True, "forgotten_ms": waited_ms}

    def render() -> None:
        if not answer["changed"]:
            out.print(f"{anonymous_id} is not {user_id}'s already; nothing is changed.", markup=False)
        elif answer["forgotten_ms"] is None:
            out.print(f"{anonymous_id} is no longer {user_id}'s. It is durable, but the consumer has not applied it "
                      f"within {APPLIED_WITHIN_SECONDS:.0f} s: see `nightjar status`.", markup=False)  # fmt: skip
        else:
            out.print(f"{anonymous_id} is no longer {user_id}'s: answers know ({answer['forgotten_ms']:.0f} ms), the "
                      "next night restores the tables.", markup=False)  # fmt: skip

    emit(answer, as_json=as_json, render=render)


def _known_edge(environment: Environment, anonymous_id: str, user_id: str) -> Edge:
    """The edge, online if it is there, else as the last night had it. Raises DataError when there is none."""
    of_device = [known for known in _online(environment, anonymous_id) if known.anonymous_id == anonymous_id]
    of_device += [known for known in _in_tables(environment) if known.anonymous_id == anonymous_id]
    for known in of_device:
        if known.user_id == user_id:
            return known.edge
    users = sorted({known.user_id for known in of_device})
    if not users:
        raise DataError(f"no edge is known of the device {anonymous_id!r}; `nightjar identity list` shows those that "
                        "are", field="anonymous_id")  # fmt: skip
    raise DataError(f"the device {anonymous_id!r} was never seen with {user_id!r}, but with {', '.join(users[:5])}"
                    f"{nearest(user_id, users)}", field="user_id")  # fmt: skip


def _send(anonymous_id: str, user_id: str, *, at: datetime, reason: str) -> str:
    """The undo as an event through the front door: durable when this returns. Returns its event id."""
    from infra.cli.serving_commands import ask

    event = {
        "event_id": f"unmerge-{uuid.uuid4().hex}",
        "event_type": EventType.UNMERGE.value,
        "user_id": user_id,
        "anonymous_id": anonymous_id,
        "timestamp": format_timestamp(at),
        "properties": {"reason": reason, "actor": getpass.getuser()},
    }
    (result,) = ask("/v1/events", event)["results"]
    if result["status"] == "quarantined":
        raise DataError(f"the API refuses it: {result['detail']}", field=result["field"])
    return str(event["event_id"])


def _wait(environment: Environment, anonymous_id: str, user_id: str, *, undone_micros: int) -> bool:
    deadline = time.monotonic() + APPLIED_WITHIN_SECONDS
    while time.monotonic() < deadline:
        if any(
            known.user_id == user_id and known.edge.undone_micros >= undone_micros
            for known in _online(environment, anonymous_id)
        ):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _online(environment: Environment, name: str) -> list[Known]:
    """The edges of a name in Redis `online`, as a device and as a user."""
    import redis
    from redis.exceptions import RedisError

    try:
        with redis.Redis.from_url(environment.redis_online_url, socket_timeout=5) as client:
            fields: Mapping[bytes, bytes] = client.hgetall(edges_key("a:" + name, environment.tenant))
            devices: Mapping[bytes, bytes] = client.hgetall(edges_key("u:" + name, environment.tenant))
    except RedisError as error:
        raise DependencyError(
            f"Redis `online` does not answer ({type(error).__name__}): see `nightjar status`"
        ) from error
    found = [Known("online", name, field.decode()[2:], unpack_edge(record)) for field, record in fields.items()]
    found += [
        Known("online", field.decode()[2:], name, unpack_edge(record))
        for field, record in devices.items()
        if field.startswith(b"a:")
    ]
    return sorted(found)


def _in_tables(environment: Environment) -> list[Known]:
    from spark_jobs.io.light_delta import read_table

    def edge(row: Mapping[str, Any]) -> Edge:
        undone_at = row["undone_at"]
        undone = NEVER if undone_at is None else to_micros(undone_at)
        return Edge(to_micros(row["first_seen_at"]), to_micros(row["last_seen_at"]), undone, row["is_alias"])

    rows = read_table(environment, "silver.identity_edges").to_pylist()
    return [Known("tables", row["anonymous_id"], row["user_id"], edge(row)) for row in rows]


def _is_about(known: Known, name: str) -> bool:
    return name in (known.anonymous_id, known.user_id)


def _described(known: Known) -> dict[str, Any]:
    edge = known.edge
    is_seen = edge.last_micros != NEVER
    return {
        "view": known.view,
        "anonymous_id": known.anonymous_id,
        "user_id": known.user_id,
        "is_alias": edge.is_alias,
        "is_live": edge.is_live,
        "first_seen_at": format_timestamp(from_micros(edge.first_micros)) if is_seen else None,
        "last_seen_at": format_timestamp(from_micros(edge.last_micros)) if is_seen else None,
        "undone_at": None if edge.undone_micros == NEVER else format_timestamp(from_micros(edge.undone_micros)),
    }


def _show_table(edges: list[Known]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not edges:
        out.print("No edge is known: no event named both a user_id and an anonymous_id yet.")
        return
    table = Table("device", "user", "first seen", "last seen", "state", "in", box=None)
    for known in edges:
        row = _described(known)
        state = "alias" if known.edge.is_alias else "live"
        table.add_row(
            escape(known.anonymous_id), escape(known.user_id), _minute(row["first_seen_at"]),
            _minute(row["last_seen_at"]), state if known.edge.is_live else f"undone {_minute(row['undone_at'])}",
            known.view,
        )  # fmt: skip
    out.print(table)


def _minute(moment: str | None) -> str:
    return "" if moment is None else moment[:16].replace("T", " ")


def _environment() -> Environment:
    from infra.local.variables import stack_environment

    return stack_environment(os.environ)
