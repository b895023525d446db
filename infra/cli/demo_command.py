"""`nightjar demo`: the whole story in one command, on a simulated shop or on a real one."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, REFINE_FILE
from infra.cli.output import ExitCode, err, out, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.demo.retail_story import ColdItem, Customer, Pair
    from infra.demo.shop_window import ShopWindow
    from infra.demo.story import Check, StepTimes
    from infra.importing.report import ImportReport

    Story = tuple[list[Pair], Customer | None, tuple[int, int, list[ColdItem]]]

SHOP_FOLDER = "demo-shop"


def register(app: typer.Typer) -> None:
    """Add the command to `nightjar`."""
    app.command("demo")(demo)


def demo(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The UCI Online Retail file (.csv or .csv.gz). Default: a simulated shop."),
    ] = None,
    leave: Annotated[bool, typer.Option("--exit", help="Stop the stack afterwards.")] = False,
) -> None:
    """Run the whole pipeline and end with a recommendation that changes after a click. Exit code 1: a claim failed."""
    from infra.demo.story import StepTimes
    from infra.local.stack import down

    if data is not None and not data.is_file():
        raise DataError(f"--data {data}: there is no such file")
    times = StepTimes()
    try:
        checks = _play(data, times)
    finally:
        if leave:
            with step("stopping the stack"):
                down()
    if leave:
        out.print("The stack is stopped; its data stays. `nightjar up` starts it again.")
    else:
        out.print("The stack is running. `nightjar down` stops it; `nightjar recommend --user U --explain` asks it.")
    if not all(check.held for check in checks):
        raise typer.Exit(ExitCode.FAILED)


def _play(data: Path | None, times: StepTimes) -> Sequence[Check]:
    from infra.cli.run_commands import raise_if_failed, show_task
    from infra.cli.stack_commands import addresses, show_service
    from infra.demo import screen, stage
    from infra.demo.shop_window import open_shop_window
    from infra.demo.story import click_through, compare_with_truth
    from infra.local.night import run_nightly
    from infra.local.stack import down, up
    from infra.local.variables import stack_environment
    from spark_jobs.io.publication import Publication
    from spark_jobs.io.run_store import read_report

    wanted = stage.data_name(data)
    at_rest = Environment.from_mapping(os.environ)
    if stage.needs_clearing(at_rest, wanted):
        err.print("The home holds another demo's shop: making room.")
        down()
        stage.clear(at_rest)
    stage.mark(at_rest, wanted)

    err.print("[bold]Starting the stack[/]")
    with times.measure("start the stack"):
        book = up(on_progress=show_service)
    env = stack_environment()
    shop = Path(env.home) / SHOP_FOLDER
    reports = _load(data, shop, env, times)

    as_of = stage.day_after_last_import(env).isoformat()
    err.print(f"[bold]Running the night[/] as of {as_of}, through Airflow")
    with times.measure("night"):
        night = run_nightly(as_of, on_progress=show_task)
    raise_if_failed(night)

    with times.measure("ask, click, ask again"):
        version = Publication(env.redis_online_url, env.tenant).served_version()
        if version is None:
            raise DataError("the night succeeded, but no version is served; see `nightjar versions`")
        window = open_shop_window(env, version)
        clicked = click_through(env, book[names.API_URL], window, as_of)
    checks = clicked.checks()
    if data is None:
        with times.measure("compare with the truth"):
            checks.append(compare_with_truth(env, window, as_of, shop).check())

    story = None
    if data is not None:
        with times.measure("tell the shop's story"):
            story = _tell(env, window, as_of)

    run_key = night["run_key"]
    out.rule(f"Nightjar: version {version}")
    refine = read_report(env, run_key, REFINE_FILE)
    screen.show_counts(out, [report.to_mapping() for report in reports], refine)
    screen.show_models(out, read_report(env, run_key, EVALUATION_FILE), read_report(env, run_key, GATE_FILE))
    if story is not None:
        _show_story(window, story)
    screen.show_history(out, window, clicked)
    screen.show_slate(out, window, clicked.before, "Their slate")
    screen.show_move(out, window, clicked)
    screen.show_checks(out, checks)
    screen.show_times(out, times.seconds, {task["task_id"]: task["seconds"] or 0.0 for task in night["tasks"]})
    screen.show_addresses(out, addresses(book))
    return checks


def _tell(env: Environment, window: ShopWindow, as_of: str) -> Story:
    """What a real history has to tell: pairs, one customer, cold items."""
    from infra.demo import retail_story as story

    lines = story.read_purchases(env, as_of)
    numbers = story.read_lists(env, as_of)
    listed = {item_id: numbers.get(number, 0) for number, item_id in window.number_to_id.items()}
    categories = {item_id: window.category(item_id) for item_id in window.items}
    user_id = story.choose_customer(lines)
    customer = None if user_id is None else story.tell_customer(lines, user_id, as_of, categories)
    return story.bought_together(lines), customer, story.cold_items(lines, as_of, listed)


def _show_story(window: ShopWindow, story: Story) -> None:
    from infra.demo import retail_screen

    pairs, customer, cold = story
    retail_screen.show_pairs(out, window, pairs)
    if customer is not None:
        retail_screen.show_customer(out, window, customer)
    retail_screen.show_cold(out, window, cold)


def _load(data: Path | None, shop: Path, env: Environment, times: StepTimes) -> tuple[ImportReport, ...]:
    """Make the simulated shop, or take the real one, and import it."""
    from infra.importing.online_retail import import_online_retail
    from infra.importing.shop import import_shop
    from infra.simulator.config import ShopConfig
    from infra.simulator.shop import simulate_shop

    if data is not None:
        err.print(f"[bold]Importing[/] {data}")
        with times.measure("import"), step("importing"):
            return import_online_retail(data, env, received_at=datetime.now(UTC))
    err.print("[bold]Simulating a shop[/]")
    with times.measure("simulate"), step("simulating"):
        simulate_shop(ShopConfig(), shop)
    with times.measure("import"), step("importing"):
        return import_shop(shop, env, received_at=datetime.now(UTC))
