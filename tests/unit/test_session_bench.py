"""`nightjar bench sessions` and `session-weights` on generated sessions: the answers of the API are the model's."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import DataError
from infra.bench.serving import session_weights
from infra.bench.serving.session_weights import bench_session_weights
from infra.cli.main import build_app

ITEMS = 60
DAY = 86_400


def walk(rng: np.random.Generator, length: int) -> list[str]:
    """Round a ring of items, mostly one or two ahead, sometimes back to one that was there before."""
    places = [int(rng.integers(ITEMS))]
    while len(places) < length:
        leap = int(rng.choice(places)) if rng.random() < 0.1 else places[-1] + int(rng.choice([1, 1, 2, 5]))
        places.append(leap % ITEMS)
    return [f"i{place:02d}" for place in places]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(3)
    train = [" ".join(walk(rng, int(rng.integers(1, 8)))) for _ in range(900)]
    asked = [walk(rng, int(rng.integers(2, 9))) for _ in range(150)]
    paths = tmp_path / "train.txt", tmp_path / "test.tsv"
    paths[0].write_text("\n".join(train) + "\n")
    paths[1].write_text("\n".join(f"{' '.join(found[:-1])}\t{found[-1]}" for found in asked) + "\n")
    return paths


def test_replayed_sessions_reach_what_the_model_reaches(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_HOME", str(tmp_path / "home"))
    report_file = tmp_path / "report.json"
    words = ["bench", "sessions", "--train", files[0], "--test", files[1], "--k", 5, "--json", report_file]
    result = CliRunner().invoke(build_app(), [str(word) for word in [*words, "--questions", 120]])
    assert result.exit_code == 0, result.output
    report = json.loads(report_file.read_text())
    assert report["questions"] == 120
    assert report["figures"]["hr@5"]["ratio"] >= 0.99
    assert report["figures"]["hr@5"]["median"] > 0.3
    assert report["same_lists"] > 0.95  # what is popular decides between votes that are nearly equal
    assert report["offline"].keys() == {"session_transitions", "session_knn", "sequential_rules"}
    assert 0 < report["figures"]["scorer_us"]["median"] < 10_000


def write_events(path: Path) -> Path:
    """40 people, each with a neighbourhood of the ring where half of what they do is; a new visitor every other day."""
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = []
    for day in range(60):
        people = [f"p{person:02d}" for person in rng.choice(40, 25, replace=False)] + [f"new{day:02d}"] * (day % 2)
        for person in people:
            home = int(person[1:]) if person.startswith("p") else int(rng.integers(ITEMS))
            time = day * DAY + int(rng.integers(DAY))
            places = [(home + int(step)) % ITEMS for step in rng.integers(0, 12, 3)]
            places = [place for at in places for place in (at, (at + 1) % ITEMS)]
            rows += [
                {"user": person, "item": f"i{place:02d}", "event": "view_item", "time": 1_700_000_000 + time + 60 * at}
                for at, place in enumerate(places)
            ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["user", "item", "event", "time"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_weights_are_chosen_on_one_stretch_and_reported_on_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_weights, "WEIGHTS", (1.0, 3.0, 30.0))
    events = write_events(tmp_path / "events.csv")
    report = bench_session_weights(tmp_path / "home", events=events, exclude_seen="none", k=5)
    assert report["who"].keys() == {"known", "visitors"}
    for found in report["who"].values():
        assert found["questions"] > 5
        assert found["blend"]["hr"] >= found["own"]["hr"]
        assert found["weights"].keys() == {1.0, 3.0, 30.0}
    assert report["who"]["known"]["own"]["hr"] > 0.1
    with pytest.raises(DataError, match="did you mean 'interacted'"):
        bench_session_weights(tmp_path / "home", events=events, exclude_seen="interact")
