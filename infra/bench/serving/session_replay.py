"""`nightjar bench sessions`: held-out sessions asked through the API, and of the model itself."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.types import ASGIApp, Message

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import DEFAULT_TENANT, pointer_key
from infra.bench.quality import tasks
from infra.bench.quality.ranking import Part, by_block, evaluate
from infra.bench.report import figure, make_report
from infra.bench.serving.sessions_version import load_version, write_version
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore
from serving.main import create_app
from serving.pipeline.session_index import SessionIndex
from serving.settings import ServingSettings
from spark_jobs.evaluation.session_choice import choose_session_recipe
from spark_jobs.models.ranking import top_items
from spark_jobs.models.recipes import default_sequence_recipe
from spark_jobs.models.sequences import Sequences

RAW = "raw"
LEAST_SHARE = 0.99
"""Of the model's own hit rate that the API must reach."""
MOST_RECENT = 50
"""Events that a request may bring; of a longer session the newest are sent."""
TIMED_LENGTH = 5
TIMED_SESSIONS = 2_000
ROUNDS = 5
SEED = 20_240_229

Say = Callable[[str], None]


class Replay(NamedTuple):
    """hr and mrr of the answers, the answered items of each question, and the seconds that all of them took."""

    hr: float
    mrr: float
    answers: list[list[str]]
    seconds: float


def bench_sessions(
    home: Path,
    variables: Mapping[str, str],
    *,
    train: Path,
    test: Path,
    k: int = 20,
    questions: int | None = None,
    code_version: str = "unknown",
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The report. In `home`, which is made anew, lies the version that was asked.

    The index is learned from `train` by the recipe that the night would choose there; each prefix of `test` (or so many
    `questions` of them, drawn by a seed) is sent as recent_events to POST /v1/recommendations, placement `raw`. The
    offline figures are those of `nightjar bench quality --protocol sessions` for the same questions: of the model, and
    of session kNN and sequential rules with their default recipes.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    task = tasks.open_training("sessions", train=train, test=test)
    training = task.training
    assert training.sessions is not None
    choice = choose_session_recipe(training.sessions)
    say(f"{len(training.sessions):,} sessions of {training.item_count:,} items; the night would choose {choice.manner}")
    recipes = {"session_transitions": choice.recipe}
    recipes |= {name: default_sequence_recipe(name) for name in ("session_knn", "sequential_rules")}
    asked = _drawn(tasks.open_test(task), questions)
    offline = {name: evaluate(Part(recipe, training), asked, k) for name, recipe in recipes.items()}
    for name, found in offline.items():
        say(f"{name:<20} hr@{k} {found[f'hr@{k}']:.4f}  mrr@{k} {found[f'mrr@{k}']:.4f}")
    model_lists = _lists(Part(choice.recipe, training), asked, k)

    variables = {name: value for name, value in variables.items() if not name.startswith("NIGHTJAR_")}
    environment = Environment.from_mapping({**variables, names.HOME: str(home)})
    item_names = [str(name) for name in training.item_names]
    version = write_version(environment.publications, item_names, training.sessions, choice.recipe)
    prefixes = asked.questions.prefixes
    assert prefixes is not None
    sessions = [[item_names[number] for number in prefix] for prefix in _split(prefixes)]
    targets = [item_names[row.indices[0]] if row.nnz else None for row in asked.relevant]
    replay = asyncio.run(_replay(environment, version, sessions, targets, k))
    say(f"{'through the API':<20} hr@{k} {replay.hr:.4f}  mrr@{k} {replay.mrr:.4f}")

    index = load_version(environment.publications, version).session_index
    assert index is not None
    whole = [at for at, found in enumerate(model_lists) if len(found) == k]
    same = [replay.answers[at] == [item_names[number] for number in model_lists[at]] for at in whole]
    offline_hr = offline["session_transitions"][f"hr@{k}"]
    return make_report(
        "sessions",
        {
            f"hr@{k}": figure("share", [replay.hr], baseline=[offline_hr]),
            f"mrr@{k}": figure("share", [replay.mrr], baseline=[offline["session_transitions"][f"mrr@{k}"]]),
            "scorer_us": figure("us", _timed(index, _of_length(training.sessions, TIMED_LENGTH))),
        },
        code_version,
        k=k,
        questions=len(sessions),
        recipe=choice.recipe,
        manner=choice.manner,
        offline=offline,
        same_lists=round(float(np.mean(same)), 6) if same else None,
        index_mb=round(sum(column.nbytes for column in index.columns) / 1e6, 2),
        requests_seconds=round(replay.seconds, 2),
        reaches_bar=bool(replay.hr >= LEAST_SHARE * offline_hr),
    )


def _drawn(asked: tasks.Slice, questions: int | None) -> tasks.Slice:
    if questions is None or questions >= len(asked.questions):
        return asked
    rows = np.sort(np.random.default_rng(SEED).choice(len(asked.questions), questions, replace=False))
    return asked._replace(
        questions=asked.questions.part(rows), relevant=asked.relevant[rows], relevant_counts=asked.relevant_counts[rows]
    )


def _lists(part: Part, asked: tasks.Slice, k: int) -> list[list[int]]:
    """The model's best items for each question, those with a score."""

    def work(block: tasks.Slice) -> list[list[int]]:
        numbers, values = top_items(part.scores(block.questions), k)
        return [row[score > 0].tolist() for row, score in zip(numbers, values, strict=True)]

    return [found for block in by_block(asked, work) for found in block]


def _split(sequences: Sequences) -> list[NDArray[np.int32]]:
    return np.split(sequences.items, sequences.starts[1:-1])


def _of_length(sequences: Sequences, length: int) -> list[list[int]]:
    """Sessions of so many different items; of longer ones the last."""
    found = (list(dict.fromkeys(reversed(session.tolist())))[:length][::-1] for session in _split(sequences))
    return [session for session in found if len(session) == length][:TIMED_SESSIONS]


def _timed(index: SessionIndex, sessions: Sequence[Sequence[int]]) -> list[float]:
    """Microseconds of CPU that the scores of one session cost, as often as it was measured."""
    found = []
    for _ in range(ROUNDS):
        begun = time.process_time_ns()
        for session in sessions:
            index.scores(session)
        found.append((time.process_time_ns() - begun) / 1000 / max(1, len(sessions)))
    return found


async def _replay(
    environment: Environment, version: str, sessions: Sequence[Sequence[str]], targets: Sequence[str | None], k: int
) -> Replay:
    store, decisions = MemoryOnlineStore(tenant=DEFAULT_TENANT), MemoryDecisionLog()
    store.strings[pointer_key(DEFAULT_TENANT)] = version.encode()
    app = create_app(
        environment, ServingSettings(bundle_wait_ms=60_000.0), store=store, log=MemoryEventLog(tenant=DEFAULT_TENANT),
        decisions=decisions,
    )  # fmt: skip
    answers, gains = [], []
    begun = time.monotonic()
    for session, target in zip(sessions, targets, strict=True):
        events = [{"event_type": "view_item", "item_id": item} for item in session[-MOST_RECENT:]]
        found = await _ask(app, {"placement": RAW, "num_results": k, "recent_events": events})
        decisions.payloads.clear()
        answers.append(found)
        gains.append(1 / (1 + found.index(target)) if target in found else 0.0)
    rank = np.array(gains)
    return Replay(float((rank > 0).mean()), float(rank.mean()), answers, time.monotonic() - begun)


async def _ask(app: ASGIApp, document: Mapping[str, Any]) -> list[str]:
    """The item ids of one answer. Raises DependencyError on any status but 200."""
    body, path = orjson.dumps(document), "/v1/recommendations"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "server": ("api", 80), "client": ("bench", 1),
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    if sent[0]["status"] != 200:
        raise DependencyError(f"POST {path} answered {sent[0]['status']}: {content[:300].decode(errors='replace')}")
    return [item["item_id"] for item in orjson.loads(content)["items"]]
