"""The connection spark_default names the cluster while one is up, this machine otherwise, and a person's own always."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from infra.local.cluster import CLUSTER_NAMES, cluster_down
from infra.local.programs import command_of
from infra.local.variables import CLUSTER_FILE, SPARK_CONNECTION, stack_variables

LOCAL = {"conn_type": "spark", "host": "local[*]"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / CLUSTER_FILE).parent.mkdir()
    return tmp_path


def connection(home: Path, **variables: str) -> object:
    return json.loads(stack_variables({names.HOME: str(home), **variables})[SPARK_CONNECTION])


def test_the_connection_follows_the_cluster(home: Path) -> None:
    assert connection(home) == LOCAL
    cluster = {"master": "spark://127.0.0.1:7077", "status_url": "http://127.0.0.1:7078"}
    (home / CLUSTER_FILE).write_text(json.dumps(cluster))
    assert connection(home) == {"conn_type": "spark", "host": "spark://127.0.0.1", "port": 7077}
    own = json.dumps({"conn_type": "spark", "host": "yarn"})
    assert connection(home, **{SPARK_CONNECTION: own}) == {"conn_type": "spark", "host": "yarn"}
    assert cluster_down({names.HOME: str(home)}) == []  # nothing ran
    assert connection(home) == LOCAL


@pytest.mark.parametrize("text", ["", "{}", "[1]", "half a fi"])
def test_a_damaged_file_is_no_cluster(home: Path, text: str) -> None:
    (home / CLUSTER_FILE).write_text(text)
    assert connection(home) == LOCAL


def test_only_the_master_differs() -> None:
    masters = ("local[*]", "spark://h:1")
    here, there = (command_of("score_users", "k1", "2024-03-08", master, "/spark") for master in masters)
    assert here[here.index("--properties-file") + 1] == "/spark/spark-defaults.conf"
    assert [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]] == [("local[*]", "spark://h:1")]
    assert len(CLUSTER_NAMES) == 3
