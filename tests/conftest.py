"""Fixtures on real parts: a Spark session with Delta, a Redis server, an empty installation."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

os.environ["TZ"] = "UTC"
time.tzset()
os.environ.pop("COLUMNS", None)  # what is printed is as wide as in a pipe, whoever runs the tests
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
settings.register_profile("nightjar", deadline=None)  # a busy machine is no failure
settings.load_profile("nightjar")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def jars_folder() -> Path:
    """The seven Delta jars: where NIGHTJAR_JARS says, else with the checkout's own state."""
    from infra.local.jars import ensure_jars
    from infra.local.java import choose_java

    folder = Path(os.environ.get(names.JARS, ROOT / ".nightjar" / "jars"))
    java = choose_java(os.environ, ROOT / ".nightjar" / "java")
    os.environ["JAVA_HOME"] = java.home
    ensure_jars(folder, java_home=java.home, variables=os.environ)
    return folder


@pytest.fixture(scope="module", params=["twin", "native"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the module twice: answered by Python, then by compiled code. For a module's `pytestmark`."""
    from serving.native import described, parts

    compiled = parts.slates, parts.answers
    if request.param == "native" and None in compiled:
        pytest.skip(f"serving answers from {described()}")
    if request.param == "twin":
        parts.slates = parts.answers = None
    yield
    parts.slates, parts.answers = compiled


@pytest.fixture(scope="session")
def spark(jars_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One Spark session for the whole run, with two threads and the settings that jobs get."""
    from infra.local.spark_conf import write_spark_conf
    from spark_jobs.session import get_session

    folder = tmp_path_factory.mktemp("spark")
    os.environ["SPARK_CONF_DIR"] = str(write_spark_conf(folder, jars_folder, driver_memory="2g"))
    os.environ["PYSPARK_PYTHON"] = sys.executable
    # A test's queries are many, small and each new: compiling them would take longer than running them.
    light = {
        "spark.driver.defaultJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss4m",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    }
    settings = " ".join(f'--conf "{name}={value}"' for name, value in light.items())
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--master local[2] {settings} pyspark-shell"
    session = get_session("nightjar-tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from infra.local.redis_server import RunningServer

    with RunningServer("online", tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """A real, empty Redis or Valkey on a port of its own; shared by the run, flushed for each test."""
    import redis

    with redis.Redis.from_url(_redis_server) as client:
        client.flushall()
    return _redis_server


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a real MLflow database, made once (that takes seconds): each test works for a tenant of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An empty installation in a folder of its own. Its Redis URLs point at nothing that listens."""
    unused = "redis://127.0.0.1:1/0"
    return Environment.from_mapping(
        {
            names.HOME: str(tmp_path / "home"),
            names.REDIS_LOG_URL: unused,
            names.REDIS_ONLINE_URL: unused,
            names.MLFLOW_URI: "http://127.0.0.1:1",
            names.CODE_VERSION: "test",
        }
    )
