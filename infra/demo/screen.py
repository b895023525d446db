"""The demo's screen: what a person reads at the end. Prints values, computes none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from infra.demo.shop_window import ShopWindow
from infra.demo.story import Check, Clicked

HISTORY_ROWS = 8
NIGHT_STEP = "night"
SLICES = ("all", "<5", "5-20", ">20")
NDCG = "ndcg_at_20"


def small_table(title: str, *columns: str, right: Collection[str] = ()) -> Table:
    """A table as the demo's screen has them: a bold title at the left, columns in `right` aligned to the right."""
    table = Table(
        title=f"\n[bold]{title}[/]",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="",
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show_counts(console: Console, imports: Sequence[Mapping[str, Any]], refine: Mapping[str, Any]) -> None:
    """What was read, and what became of it; each line adds up."""
    counts = ("read", "accepted", "quarantined", "not stored")
    table = small_table("Data: every line accounted for", "", *counts, right=counts)
    for report in imports:
        numbers = [report["read"], report["accepted"], report["quarantined_total"], report["not_stored"]]
        table.add_row(report["kind"], *(f"{n:,}" for n in numbers))
    console.print(table)
    for report in imports:
        by_count = sorted(report["quarantined"].items(), key=lambda pair: (-pair[1], pair[0]))
        for label, pairs in (("quarantined", by_count), ("of them", report["notes"].items())):
            if pairs:
                console.print(f"{report['kind']} {label}: {', '.join(f'{name} {count:,}' for name, count in pairs)}")
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
    """Every model on every slice, best first, the winner marked, and the gate's words."""
    test = evaluation["test"]
    users = {name: test["users_by_slice"][name] for name in SLICES}
    heads = [f"{name}\n{count:,}" for name, count in users.items()]
    others = ("R@20", "MRR@20", "cover", "fit s")
    title = f"Models: NDCG@20 by slice (users below), all items ranked, last {test['days']} days"
    table = small_table(title, "model", *heads, *others, right=(*heads, *others))
    models = sorted(evaluation["models"].items(), key=lambda pair: -pair[1]["metrics"].get("all", {}).get(NDCG, 0.0))
    for name, model in models:
        metrics, won = model["metrics"], name == gate.get("contestant")
        slices = [_figure(metrics.get(part, {}), NDCG, 4 if part == "all" else 3) for part in users]
        rest = [_figure(metrics.get("all", {}), f"{metric}_at_20") for metric in ("recall", "mrr")]
        coverage = _figure(model["beyond_accuracy"], "coverage_at_20")
        label = f"[bold green]{name} *[/]" if won else name
        table.add_row(label, *slices, *rest, coverage, f"{model['fit_seconds']:.1f}")
    console.print(table)
    for name, model in models:
        if model.get("beside"):
            had = f"{test['users_in_a_session']:,} of {test['users']:,} had one"
            words = f"{model['beside']}'s lists, blended with the session that asks; {had}"
            if name == "with_ranker":
                words = f"the answers of {model['beside']}, their best in the order of a ranker"
            console.print(f"{name}: {words}. Not judged.")
    console.print(f"The gate says [bold]{gate['verdict']}[/]:")
    for reason in gate["reasons"]:
        console.print(f"- {reason}", markup=False)


def _figure(metrics: Mapping[str, float], name: str, places: int = 3) -> str:
    return f"{metrics[name]:.{places}f}" if name in metrics else "-"


def show_history(console: Console, window: ShopWindow, clicked: Clicked) -> None:
    """The newest distinct items of the user, with how often and how."""
    by_item: dict[str, list[Mapping[str, Any]]] = {}
    for row in clicked.cast.history:
        by_item.setdefault(row["item_id"], []).append(row)
    title = f"User {clicked.cast.user_id}: the newest of {len(by_item)} items they know"
    table = small_table(title, "when", "item", "category", "what they did")
    for item_id, rows in list(by_item.items())[:HISTORY_ROWS]:
        kinds = Counter(row["event_type"] for row in rows)
        did = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        day = rows[0]["event_timestamp"].date().isoformat()
        table.add_row(day, escape(window.title(item_id)), escape(window.category(item_id)), did)
    console.print(table)


def show_slate(console: Console, window: ShopWindow, answer: Mapping[str, Any], title: str) -> None:
    """A slate, the reason of each item below its title."""
    console.print(f"\n[bold]{title}[/]\n")
    for item in answer["items"]:
        _print_item(console, window, item, "")


def show_move(console: Console, window: ShopWindow, clicked: Clicked) -> None:
    """The slate after the clicks: what moved, from where, and why."""
    titles = ", ".join(escape(window.title(item_id)) for item_id in clicked.cast.clicks)
    console.print(f"\n[bold]Three clicks in {escape(clicked.cast.category)}:[/] {titles}")
    old = {item["item_id"]: item["rank"] for item in clicked.before["items"]}
    console.print("\n[bold]The slate after the clicks[/]\n")
    for item in clicked.after["items"]:
        before = old.get(item["item_id"])
        _print_item(console, window, item, "[green]new[/]" if before is None else _arrow(before - item["rank"]))


def _arrow(places: int) -> str:
    return "=" if places == 0 else f"{'▲' if places > 0 else '▼'}{abs(places)}"


def _print_item(console: Console, window: ShopWindow, item: Mapping[str, Any], moved: str) -> None:
    """One line of what it is, cut where the screen ends, and the whole reason below it."""
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(width=2, justify="right")
    if moved:
        line.add_column(width=3)
    line.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    line.add_column(width=5)
    line.add_column(width=10, no_wrap=True)
    title, category = escape(window.title(item["item_id"])), escape(window.category(item["item_id"]))
    line.add_row(
        str(item["rank"]), *([moved] if moved else []), title, category, f"{item['score']:.3f}", item["source"]
    )
    console.print(line)
    first, *others = item["reasons"]
    why = " and ".join([first["text"], *(reason["title"] or reason["text"] for reason in others)])
    console.print(Padding(f"[dim]{escape(why)}[/]", (0, 0, 0, 9 if moved else 4)))


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Each claim with its measurement."""
    table = small_table("What this run has shown", "", "claim", "measured")
    for check in checks:
        table.add_row("[green]yes[/]" if check.held else "[bold red]NO[/]", check.claim, check.measured)
    console.print(table)


def show_times(console: Console, steps: Mapping[str, float], tasks: Mapping[str, float]) -> None:
    """Wall seconds by step, the night's tasks below it."""
    table = small_table("Time", "step", "seconds", right=("seconds",))
    for name, seconds in steps.items():
        table.add_row(name, f"{seconds:.1f}")
        if name == NIGHT_STEP:
            for task, task_seconds in tasks.items():
                table.add_row(f"[dim]  {task}[/]", f"[dim]{task_seconds:.1f}[/]")
    table.add_row("[bold]all[/]", f"[bold]{sum(steps.values()):.1f}[/]")
    console.print(table)


def show_addresses(console: Console, described: Mapping[str, Any]) -> None:
    """Where to look further, with logins."""
    airflow = described["airflow"]
    table = small_table("Look around", "what", "address", "login")
    table.add_row("Airflow", airflow["url"], f"{airflow['user']} / {airflow['password']}" if "user" in airflow else "")
    table.add_row("MLflow", described["mlflow"]["url"], "none")
    table.add_row("API docs", described["api"]["docs"], "none")
    console.print(table)
