"""`nightjar cluster up`, `down`: the night on a Spark cluster instead of on this machine's threads."""

from __future__ import annotations

import typer

from infra.cli.output import out, step


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="A Spark standalone cluster on loopback for the nights.", no_args_is_help=True)
    group.command("up")(start)
    group.command("down")(stop)
    app.add_typer(group, name="cluster")


def start() -> None:
    """Start a master and two workers, and point the connection spark_default at them. Restarts Airflow if it runs."""
    from infra.local.cluster import cluster_up

    with step("starting the cluster"):
        cluster = cluster_up()
        was_running = _restart_stack()
    out.print(f"Spark    {cluster.master}   its page {cluster.status_url}", markup=False)
    if not was_running:
        out.print("The stack is not running: `nightjar up` starts it with this cluster.")


def stop() -> None:
    """Stop the cluster; the next nights run on this machine again."""
    from infra.local.cluster import cluster_down

    with step("stopping the cluster"):
        stopped = cluster_down()
        if stopped:
            _restart_stack()
    out.print(f"Stopped {', '.join(stopped)}." if stopped else "No cluster was running.")


def _restart_stack() -> bool:
    """Have the running stack read the connection anew; False when there is none."""
    from infra.local.stack import status, up

    if not any(service.name == "scheduler" and service.state == "running" for service in status()):
        return False
    up()
    return True
