"""The demo's screen: what a person reads at the end. Prints values, computes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.demo.shop_window import ShopWindow
from infra.demo.story import Check, Clicked

HISTORY_ROWS = 8


def show_counts(console: Console, imports: Sequence[Mapping[str, Any]], refine: Mapping[str, Any]) -> None:
    """What was read, and what became of it; each line adds up."""
    table = Table(title="Data: every line accounted for", title_justify="left")
    for column in ("", "read", "accepted", "quarantined", "not stored", "by reason"):
        table.add_column(column, justify="left" if column in ("", "by reason") else "right")
    for report in imports:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["quarantined"].items())
        notes = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in report["notes"].items())
        counts = [report["read"], report["accepted"], report["quarantined_total"], report["not_stored"]]
        table.add_row(report["kind"], *(f"{n:,}" for n in counts), "; ".join(t for t in (reasons, notes) if t))
    console.print(table)
    console.print(refine_line(refine))


def refine_line(refine: Mapping[str, Any]) -> str:
    """Bronze to silver in one line. Of a repeated night only the days that changed are counted again."""
    total = refine["total"]
    parts = " + ".join(f"{total[name]:,} {name}" for name in ("kept", "duplicates", "quarantined", "withheld"))
    return (
        f"The night read {total['read']:,} deliveries = {parts} + {total['outside']:,} after as_of. "
        f"Silver now holds {refine['events']:,} events ({refine['bot_events']:,} of {refine['bots']} bots), "
        f"{refine['sessions']:,} sessions, {refine['interactions']:,} interactions."
    )


def show_models(console: Console, evaluation: Mapping[str, Any], gate: Mapping[str, Any]) -> None:
    """Every model on every slice, the winner marked, and the gate's words."""
    test = evaluation["test"]
    table = Table(
        title=f"Models: NDCG@20 on the last {test['days']} days, all items ranked, {test['users']:,} users",
        title_justify="left",
    )
    table.add_column("model")
    for name, users in test["users_by_slice"].items():
        table.add_column(f"{name} ({users:,})" if name != "all" else "all", justify="right")
    for column in ("Recall@20", "HitRate@20", "MRR@20", "coverage", "fit"):
        table.add_column(column, justify="right")
    for name, model in evaluation["models"].items():
        metrics, won = model["metrics"], name == gate.get("contestant")
        slices = [_figure(metrics.get(part, {}), "ndcg_at_20") for part in test["users_by_slice"]]
        whole = metrics.get("all", {})
        rest = [_figure(whole, f"{metric}_at_20") for metric in ("recall", "hit_rate", "mrr")]
        coverage = _figure(model["beyond_accuracy"], "coverage_at_20")
        label = f"[bold green]{name} *[/]" if won else name
        table.add_row(label, *slices, *rest, coverage, f"{model['fit_seconds']:.1f} s")
    console.print(table)
    console.print(f"Gate: [bold]{gate['verdict']}[/].", end=" ")
    for reason in gate["reasons"]:
        console.print(f"- {reason}", markup=False)


def _figure(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "-"


def show_history(console: Console, window: ShopWindow, clicked: Clicked) -> None:
    """The newest distinct items of the user, with how often and how."""
    by_item: dict[str, list[Mapping[str, Any]]] = {}
    for row in clicked.cast.history:
        by_item.setdefault(row["item_id"], []).append(row)
    table = Table(title=f"User {clicked.cast.user_id}: history (newest first)", title_justify="left")
    for column in ("when", "what", "category", "how"):
        table.add_column(column)
    for item_id, rows in list(by_item.items())[:HISTORY_ROWS]:
        kinds = {row["event_type"] for row in rows}
        how = f"{', '.join(sorted(kinds))} x{len(rows)}" if len(rows) > 1 else rows[0]["event_type"]
        day = rows[0]["event_timestamp"].date().isoformat()
        table.add_row(day, window.title(item_id), window.category(item_id), how)
    console.print(table)
    if len(by_item) > HISTORY_ROWS:
        console.print(f"[dim]... and {len(by_item) - HISTORY_ROWS} more items[/]")


def show_slate(console: Console, window: ShopWindow, answer: Mapping[str, Any], title: str) -> None:
    """A slate with the reason of each item."""
    table = Table(title=title, title_justify="left")
    for column in ("", "item", "category", "score", "source", "why"):
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for item in answer["items"]:
        table.add_row(*_item_cells(window, item))
    console.print(table)


def show_move(console: Console, window: ShopWindow, clicked: Clicked) -> None:
    """The slate after the clicks: what moved, from where, and why."""
    titles = ", ".join(window.title(item_id) for item_id in clicked.cast.clicks)
    console.print(f"\nThree clicks in [bold]{clicked.cast.category}[/]: {titles}")
    old = {item["item_id"]: item["rank"] for item in clicked.before["items"]}
    table = Table(title="The slate after the clicks", title_justify="left")
    for column in ("", "moved", "item", "category", "score", "source", "why"):
        table.add_column(column, justify="right" if column in ("", "score") else "left")
    for item in clicked.after["items"]:
        rank, *rest = _item_cells(window, item)
        before = old.get(item["item_id"])
        moved = "[green]new[/]" if before is None else _arrow(before - item["rank"])
        table.add_row(rank, moved, *rest)
    console.print(table)


def _arrow(places: int) -> str:
    return "=" if places == 0 else f"{'▲' if places > 0 else '▼'}{abs(places)}"


def _item_cells(window: ShopWindow, item: Mapping[str, Any]) -> list[str]:
    why = "; ".join(reason["text"] for reason in item["reasons"])
    category = window.category(item["item_id"])
    return [str(item["rank"]), window.title(item["item_id"]), category, f"{item['score']:.3f}", item["source"], why]


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Each claim with its measurement."""
    table = Table(title="What this run has shown", title_justify="left")
    for column in ("", "claim", "measured"):
        table.add_column(column)
    for check in checks:
        table.add_row("[green]yes[/]" if check.held else "[bold red]NO[/]", check.claim, check.measured)
    console.print(table)


def show_times(console: Console, steps: Mapping[str, float], tasks: Mapping[str, float]) -> None:
    """Wall seconds by step, the night's tasks below it."""
    table = Table(title="Time", title_justify="left")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for name, seconds in steps.items():
        table.add_row(name, f"{seconds:.1f}")
        if name == "night":
            for task, task_seconds in tasks.items():
                table.add_row(f"[dim]  {task}[/]", f"[dim]{task_seconds:.1f}[/]")
    table.add_row("[bold]all[/]", f"[bold]{sum(steps.values()):.1f}[/]")
    console.print(table)


def show_addresses(console: Console, described: Mapping[str, Any]) -> None:
    """Where to look further, with logins."""
    airflow = described["airflow"]
    table = Table(title="Look around", title_justify="left")
    for column in ("what", "address", "login"):
        table.add_column(column)
    table.add_row("Airflow", airflow["url"], f"{airflow['user']} / {airflow['password']}" if "user" in airflow else "")
    table.add_row("MLflow", described["mlflow"]["url"], "none")
    table.add_row("API docs", described["api"]["docs"], "none")
    console.print(table)
