"""`nightjar versions`, `rollback`, `promote`, `hash`, `repro`: what is published, how to go back, how it came about."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import parse_as_of
from infra.cli.output import ExitCode, emit, out, step

if TYPE_CHECKING:
    from spark_jobs.io.publication import Publication, Version

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    app.command("versions")(versions)
    app.command("rollback")(rollback)
    app.command("promote")(promote)
    app.command("hash")(hash_everything)
    app.command("repro")(repro)


def versions(as_json: AsJson = False) -> None:
    """List the published versions: which one is served, which one a rollback returns to."""
    _, publication = _open()
    listed = publication.list_versions()

    def render() -> None:
        from rich.table import Column, Table

        if not listed:
            out.print("Nothing is published yet: `nightjar run nightly` publishes the first version.")
            return
        table = Table(
            Column("version", no_wrap=True), "", "model", "users", "items", "published", "last event", box=None
        )
        for version in listed:
            manifest = version.manifest
            table.add_row(
                version.version, _state(version), manifest.model, f"{manifest.user_count:,}",
                f"{manifest.item_count:,}", str(manifest.volatile.get("published_at") or ""),
                manifest.last_event_at or "",
            )  # fmt: skip
        out.print(table)

    emit([_described(version) for version in listed], as_json=as_json, render=render)


def rollback(
    version: Annotated[str | None, typer.Argument(help="Default: the version served before this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve an earlier version again: one pointer moves, nothing is copied. Twice in a row changes nothing."""
    from spark_jobs.io.rollback import roll_back, tell_mlflow

    started = time.perf_counter()
    environment, publication = _open()
    done = roll_back(environment, publication, version)
    flipped_ms = (time.perf_counter() - started) * 1000
    champion, disagreement = tell_mlflow(environment, done.served)
    answer = {
        "served": done.served,
        "previous": done.previous,
        "champion": champion,
        "disagreement": disagreement,
        "flipped_ms": round(flipped_ms, 1),
    }

    def render() -> None:
        out.print(f"Serving [bold]{done.served}[/], no longer {done.previous} ({flipped_ms:.0f} ms).")
        if disagreement is None:
            out.print(f"MLflow's champion is registered version {champion} again.")
        else:
            out.print("[yellow]The pointer is the truth and has moved; MLflow's champion has not:[/] ", end="")
            out.print(disagreement, markup=False)

    emit(answer, as_json=as_json, render=render)


def promote(
    version: Annotated[str, typer.Argument(help="A number of the registered model, or the name of a publication.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with the version and in the audit.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version's recipe the champion that the next night compares with; serve it too while it is warm."""
    import getpass

    from spark_jobs.jobs.promote_version import promote as promote_version

    environment, _ = _open()
    with step("checking the version's files", quiet=as_json):
        done = promote_version(
            environment, version, reason=reason, actor=getpass.getuser(), at=datetime.now(UTC).replace(microsecond=0),
            dry_run=dry_run,
        )  # fmt: skip

    def render() -> None:
        out.print("[yellow]Nothing is changed (--dry-run).[/] " if dry_run else "", end="")
        out.print(done.words, markup=False)

    emit(asdict(done), as_json=as_json, render=render)


def hash_everything(
    as_of: Annotated[str | None, typer.Option("--as-of", help="A day; default: everything in the tables.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hash every silver and gold table and the published lists: two equal nights print the same lines.

    The lists are read back from Redis: those of the served version, or with --as-of of the last published one of that
    day.
    """
    from spark_jobs.io.table_hash import hash_tables

    day = None if as_of is None else parse_as_of(as_of)
    environment, publication = _open()
    with step("hashing tables and lists", quiet=as_json):
        lines = hash_tables(environment, day)
        wanted = [v for v in publication.list_versions() if (v.manifest.as_of == str(day) if day else v.is_served)]
        version = wanted[0] if wanted else None
        if version is not None:
            count, checksum = publication.stored_checksum(version.version)
            lines["lists"] = f"{checksum} ({count} users)"
            lines |= {f"bundle {name}": digest for name, digest in sorted(version.manifest.files.items())}
    whole = hashlib.sha256("\n".join(f"{name} {value}" for name, value in sorted(lines.items())).encode()).hexdigest()
    answer = {"as_of": as_of, "version": version.version if version else None, "hashes": lines, "hash": whole}

    def render() -> None:
        width = max(map(len, lines))
        for name, value in {**lines, "version": answer["version"] or "none", "hash": whole}.items():
            out.print(f"{name:<{width}}  {value}", soft_wrap=True)

    emit(answer, as_json=as_json, render=render)


def repro(
    run: Annotated[str, typer.Argument(help="The key of a finished night: the name of its run folder.")],
    as_json: AsJson = False,
) -> None:
    """Make a past night again from its pins, and compare what it made. Needs the stack; changes nothing of yours.

    Exit code 0: the same hashes; 1: others, or not reproducible (the words say why).
    """
    from infra.local.reproduction import reproduce
    from infra.local.variables import stack_variables

    def say(words: str) -> None:
        if not as_json:
            out.print(words, markup=False)

    done = reproduce(run, stack_variables(os.environ), say=say)

    def render() -> None:
        for name, value in done["hashes"].items():
            same = name not in done["differing"]
            out.print(f"{'[green]same  [/]' if same else '[bold red]OTHER [/]'} {name}  {value}", soft_wrap=True)
            if not same:
                out.print(f"       now: {done['differing'][name][1]}", soft_wrap=True)
        if done["made_by"] != done["code_version"]:
            out.print(f"The code is another: {done['made_by']} then, {done['code_version']} now.", markup=False)
        out.print(
            f"{len(done['hashes']) - len(done['differing'])} of {len(done['hashes'])} hashes are the same "
            f"({done['seconds']:.0f} s)"
        )

    emit(done, as_json=as_json, render=render)
    if not done["identical"]:
        raise typer.Exit(ExitCode.FAILED)


def _open() -> tuple[Environment, Publication]:
    from infra.local.variables import stack_environment
    from spark_jobs.io.publication import Publication

    environment = stack_environment(os.environ)
    return environment, Publication(environment.redis_online_url, environment.tenant)


def _state(version: Version) -> str:
    if version.is_served:
        return "[bold green]served[/]"
    if version.verified_at is None:
        return "[red]not verified[/]"
    return "previous" if version.is_previous else "warm"


def _described(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "version": version.version,
        "served": version.is_served,
        "previous": version.is_previous,
        "as_of": manifest.as_of,
        "model": manifest.model,
        "user_count": manifest.user_count,
        "item_count": manifest.item_count,
        "last_event_at": manifest.last_event_at,
        "published_at": manifest.volatile.get("published_at"),
        "verified_at": version.verified_at,
        "run_key": manifest.volatile.get("run_key"),
        "candidates_checksum": manifest.candidates_checksum,
    }
