"""`nightjar recommend`, `similar`: ask the running API, over HTTP like everybody else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import DependencyError, RequestError
from infra.cli.output import NotRunningError, emit, out
from infra.local.variables import known_addresses

TIMEOUT_SECONDS = 10.0

AsJson = Annotated[bool, typer.Option("--json", help="The API's answer, as one JSON document on stdout.")]
Count = Annotated[int, typer.Option("--n", min=1, max=100, help="How many items.")]
Explain = Annotated[bool, typer.Option("--explain", help="Also how the answer came about.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    app.command("recommend")(recommend)
    app.command("similar")(similar)


def recommend(
    user: Annotated[str | None, typer.Option("--user", help="The user id; without one, what everybody gets.")] = None,
    session: Annotated[
        list[str] | None,
        typer.Option("--session", metavar="ITEM", help="An item just viewed; repeat for several, oldest first."),
    ] = None,
    session_id: Annotated[
        str | None, typer.Option("--session-id", help="Only events of this session adjust the slate.")
    ] = None,
    placement: Annotated[str | None, typer.Option("--placement", help="Whose rules the slate keeps to.")] = None,
    filter_text: Annotated[
        str | None, typer.Option("--filter", metavar="TEXT", help="Which items, such as 'price < 50'.")
    ] = None,
    n: Count = 10,
    explain: Explain = False,
    as_json: AsJson = False,
) -> None:
    """Show a user's slate, with the reason of each item."""
    question = {
        "user_id": user, "session_id": session_id, "session_items": session or [], "num_results": n,
        "placement": placement, "filter": filter_text,
    }  # fmt: skip
    answer = ask("/v1/recommendations", {k: v for k, v in question.items() if v is not None} | {"explain": explain})
    emit(answer, as_json=as_json, render=lambda: _show(answer, f"slate of {user or 'nobody in particular'}"))


def similar(
    item: Annotated[str, typer.Argument(help="The item id.")],
    n: Count = 10,
    explain: Explain = False,
    as_json: AsJson = False,
) -> None:
    """Show the items most like one item."""
    answer = ask("/v1/similar", {"item_id": item, "num_results": n, "explain": explain})
    emit(answer, as_json=as_json, render=lambda: _show(answer, f"items like {item}"))


def ask(path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """The API's answer to one POST.

    Raises NotRunningError when nobody listens, DependencyError when the API cannot answer now, RequestError when it
    says that the question is wrong; each with the API's own words and what to do.
    """
    import httpx

    url = known_addresses(os.environ).get(names.API_URL)
    if not url:
        raise NotRunningError(
            f"no API address is known: start the stack with `nightjar up`, or set {names.API_URL} to a running one"
        )
    try:
        response = httpx.post(
            url.rstrip("/") + path, json=question, timeout=TIMEOUT_SECONDS, trust_env=False, headers=_key_header()
        )
    except httpx.ConnectError as error:
        raise NotRunningError(
            f"nobody listens at {url}: start the stack with `nightjar up` (`nightjar status` shows what runs)"
        ) from error
    except httpx.HTTPError as error:
        raise DependencyError(
            f"the API at {url} gave no answer within {TIMEOUT_SECONDS:.0f} s ({type(error).__name__}): see "
            "`nightjar logs api`"
        ) from error
    if response.is_success:
        return dict(response.json())
    problem = _problem(response)
    words = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
    if response.status_code in (401, 403):
        raise RequestError(f"{words}; {names.API_KEY} names the key that is sent (`nightjar keys create`)")
    if response.status_code == 503:
        raise DependencyError(words)
    if response.status_code < 500:
        raise RequestError(words, field=problem.get("field"))
    raise DependencyError(f"{words} (HTTP {response.status_code}, request {problem.get('request_id')}); see its log")


def _key_header() -> dict[str, str]:
    key = os.environ.get(names.API_KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _problem(response: Any) -> dict[str, Any]:
    """The problem+json of an error; empty when something else answered."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _show(answer: Mapping[str, Any], title: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column, justify in (("#", "right"), ("item", "left"), ("title", "left"), ("category", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("score", "source", "why"):
        table.add_column(column, justify="right" if column == "score" else "left", overflow="fold")
    for item in answer["items"]:
        facts = item["attributes"]
        why = item.get("explanation") or "; ".join(reason["text"] for reason in item["reasons"])
        table.add_row(
            str(item["rank"]), escape(item["item_id"]), escape(facts["title"] or ""), escape(facts["category"] or ""),
            f"{item['score']:.3f}", item["source"], escape(why),
        )  # fmt: skip
    out.print(table)
    notes = [f"version {answer['model_version']}", f"rung {answer['fallback_level']}", f"{answer['took_ms']:.1f} ms"]
    if answer.get("fallback_reason"):
        notes.insert(2, f"because {answer['fallback_reason']}")
    if answer["degraded"]:
        notes.append("degraded: " + ", ".join(answer["degraded_reasons"]))
    out.print(" · ".join(notes), markup=False)
    if answer.get("filtered"):
        out.print("left out: " + ", ".join(f"{count} {name}" for name, count in answer["filtered"].items()))
    if answer.get("trace"):
        _show_trace(answer["trace"])


def _show_trace(trace: Mapping[str, Any]) -> None:
    for rung in trace["rungs"]:
        out.print(f"rung {rung['rung']}: {rung['eligible']} of {rung['offered']} candidates could be used")
    if trace.get("session"):
        deeds = ", ".join(f"{event['event_type']} {event['item_id']}" for event in trace["session"])
        out.print(f"session (weight {trace['session_weight']:.2f}): {deeds}", markup=False)
    if trace.get("stages_ms"):
        out.print("stages: " + ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in trace["stages_ms"].items()))
