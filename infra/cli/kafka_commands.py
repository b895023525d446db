"""`nightjar kafka stream`: events from a Kafka topic into the lakehouse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="Events from Kafka, for those who have it.", no_args_is_help=True)
    group.command("stream")(stream)
    app.add_typer(group, name="kafka")


def stream(
    bootstrap_servers: Annotated[str, typer.Option("--bootstrap-servers", help="host:port,host:port of the brokers.")],
    topic: Annotated[str, typer.Option("--topic", help="Its messages are events in our own JSON form.")],
    starting_offsets: Annotated[
        str, typer.Option("--starting-offsets", help="Where a first start begins: earliest, latest, or 0=12,1=40.")
    ] = "earliest",
    trigger: Annotated[
        str, typer.Option("--trigger", help="available-now (read what is there, then end), or seconds between batches.")
    ] = "10",
    max_offsets_per_trigger: Annotated[
        int, typer.Option("--max-offsets-per-trigger", min=0, help="Messages in a batch; 0: no limit.")
    ] = 100_000,
    properties_file: Annotated[
        Path | None, typer.Option("--properties-file", help="Kafka client settings such as security.protocol.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Default: .kafka/TOPIC beside the tables.")
    ] = None,
    maintain_every: Annotated[
        int, typer.Option("--maintain-every", min=0, help="Batches between compactions; 0: never.")
    ] = 500,
    skip_lost_offsets: Annotated[
        bool, typer.Option("--skip-lost-offsets", help="Go on when the broker has deleted messages that nobody read.")
    ] = False,
) -> None:
    """Read a topic into bronze.events_kafka, each message once; the nights read it beside the other events.

    A line of JSON on stdout tells of each batch: counts, offsets, lag by partition. Ctrl-C or SIGTERM ends it after
    the batch under way. Exit code 2: an argument is wrong.
    """
    from infra.local.kafka import stream_process

    options = [
        f"--bootstrap-servers={bootstrap_servers}", f"--topic={topic}", f"--starting-offsets={starting_offsets}",
        f"--trigger={trigger}", f"--max-offsets-per-trigger={max_offsets_per_trigger}",
        f"--maintain-every={maintain_every}",
    ]  # fmt: skip
    if properties_file is not None:
        options.append(f"--properties-file={properties_file}")
    if checkpoint is not None:
        options.append(f"--checkpoint={checkpoint}")
    if skip_lost_offsets:
        options.append("--skip-lost-offsets")
    command, variables = stream_process(options)
    os.execve(command[0], command, variables)  # noqa: S606  signals are for the job itself
