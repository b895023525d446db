"""`nightjar`: the command line. Each command group lives in a module of its own and registers itself here."""

from __future__ import annotations

import importlib
import sys

import typer

from feature_repo.contracts.errors import NightjarError
from infra.cli.output import err, exit_code

COMMAND_MODULES = (
    "infra.cli.stack_commands",
    "infra.cli.doctor_command",
    "infra.cli.demo_command",
    "infra.cli.data_commands",
    "infra.cli.kafka_commands",
    "infra.cli.quarantine_commands",
    "infra.cli.event_commands",
    "infra.cli.cluster_commands",
    "infra.cli.run_commands",
    "infra.cli.recipe_commands",
    "infra.cli.tune_command",
    "infra.cli.version_commands",
    "infra.cli.serving_commands",
    "infra.cli.identity_commands",
    "infra.cli.key_commands",
    "infra.cli.bench_commands",
    "infra.cli.torture_commands",
)
"""Each has `register(app: typer.Typer) -> None`, and imports heavy libraries inside its commands, never at the top."""


def build_app() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="nightjar",
        help="Real-time personalization: run the stack, feed it, watch the night, ask for recommendations.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for name in COMMAND_MODULES:
        importlib.import_module(name).register(app)
    return app


def main() -> None:
    """Entry point. A domain error becomes one readable message on stderr and an exit code that means something."""
    try:
        build_app()()
    except NightjarError as error:
        err.print(f"[bold red]error[/] {type(error).__name__}: ", end="")
        err.print(str(error), markup=False)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
