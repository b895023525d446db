"""The lakehouse on an object store, without one: its location, what the engines are told, errors in words, locks."""

from __future__ import annotations

import multiprocessing
import re
import time
from pathlib import Path

import pyspark
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.object_store import ObjectStore, lakehouse_location, store_problem
from feature_repo.contracts.tables import table, table_path
from infra.importing.lease import lease_path
from infra.local.jars import jar_paths
from infra.local.java import Java
from infra.local.setup import Tools
from infra.local.spark_conf import write_spark_conf
from infra.local.store_jars import HADOOP_VERSION, S3A
from infra.local.variables import read_book, write_book
from spark_jobs.io import delta
from spark_jobs.io.writer_lock import commit_lock, writer_lock
from spark_jobs.jobs.stream_kafka import checkpoint_folder

ENDPOINT = "http://store:9000"


def installation(home: Path, lakehouse: str = "s3a://shop/lake", **variables: str) -> Environment:
    given = {"AWS_ENDPOINT_URL": ENDPOINT, **variables}
    return Environment.from_mapping({"NIGHTJAR_HOME": str(home), "NIGHTJAR_LAKEHOUSE": lakehouse, **given})


# --- where it lies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3a://shop/lake/house//", "s3a://shop/lake/house"),
        ("s3://shop", "s3a://shop"),
        ("s3://shop-1.eu/", "s3a://shop-1.eu"),
        ("/data/lake/", "/data/lake/"),  # folders are as they were
    ],
)
def test_one_name_for_both_engines(given: str, kept: str) -> None:
    assert lakehouse_location(given) == kept


@pytest.mark.parametrize(
    "given", ["gs://shop/lake", "s3a://", "s3a:///lake", "s3a://Shop/lake", "s3a://shop//x y", "file:///lake"]
)
def test_what_is_no_place_for_tables_is_named(given: str) -> None:
    with pytest.raises(DataError, match=f"NIGHTJAR_LAKEHOUSE is a folder, or s3a://.*got {given!r}") as caught:
        lakehouse_location(given)
    assert caught.value.field == "NIGHTJAR_LAKEHOUSE"


def test_tables_and_what_lies_beside_them(tmp_path: Path) -> None:
    there = installation(tmp_path)
    assert table_path(there.lakehouse, "gold.item_ids") == "s3a://shop/lake/default/gold/item_ids"
    assert lease_path(there, "importer") == tmp_path / "beside-tables" / "default" / ".importer" / "importer.lock"
    assert checkpoint_folder(there, "clicks") == f"{tmp_path}/beside-tables/default/.kafka/clicks"
    here = installation(tmp_path, str(tmp_path / "lake"))
    assert here.store is None
    assert here.storage_options is None
    assert lease_path(here, "importer") == tmp_path / "lake" / "default" / ".importer" / "importer.lock"
    assert checkpoint_folder(here, "clicks") == f"{tmp_path}/lake/default/.kafka/clicks"


# --- what the engines are told -----------------------------------------------------------------------------------


def test_a_store_of_ones_own_is_named_to_both_engines(tmp_path: Path) -> None:
    store = installation(tmp_path, AWS_SECRET_ACCESS_KEY="s3cret").store
    assert store == ObjectStore("shop", ENDPOINT, "us-east-1", virtual_hosts=False)
    assert store.light_options() == {
        "AWS_ENDPOINT_URL": ENDPOINT, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false", "AWS_CONDITIONAL_PUT": "etag",
    }  # fmt: skip
    settings = store.spark_settings()
    assert settings["spark.hadoop.fs.s3a.endpoint"] == ENDPOINT
    assert settings["spark.hadoop.fs.s3a.endpoint.region"] == "us-east-1"
    assert settings["spark.hadoop.fs.s3a.path.style.access"] == "true"
    assert "s3cret" not in str((store, settings))


def test_aws_itself_needs_no_endpoint(tmp_path: Path) -> None:
    store = installation(tmp_path, AWS_ENDPOINT_URL="", AWS_DEFAULT_REGION="eu-west-1").store
    assert store == ObjectStore("shop", "", "eu-west-1", virtual_hosts=True)
    assert store.light_options() == {
        "AWS_REGION": "eu-west-1", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true", "AWS_CONDITIONAL_PUT": "etag",
    }  # fmt: skip
    assert "spark.hadoop.fs.s3a.endpoint" not in store.spark_settings()
    assert store.spark_settings()["spark.hadoop.fs.s3a.path.style.access"] == "false"
    unnamed = installation(tmp_path, AWS_ENDPOINT_URL="").store  # a profile or the machine may say the region
    assert unnamed is not None
    assert unnamed.region == ""


def test_the_nearer_variable_counts(tmp_path: Path) -> None:
    store = installation(
        tmp_path, AWS_ENDPOINT_URL_S3="https://other/", AWS_REGION="a", AWS_DEFAULT_REGION="b",
        AWS_VIRTUAL_HOSTED_STYLE_REQUEST="true",
    ).store  # fmt: skip
    assert store == ObjectStore("shop", "https://other", "a", virtual_hosts=True)
    assert store.light_options()["AWS_ENDPOINT_URL"] == "https://shop.other"
    assert store.light_options()["AWS_ALLOW_HTTP"] == "false"


def test_an_endpoint_that_is_no_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"AWS_ENDPOINT_URL is http://host:port .*got 'store:9000'"):
        installation(tmp_path, AWS_ENDPOINT_URL="store:9000")
    installation(tmp_path, str(tmp_path), AWS_ENDPOINT_URL="store:9000")  # of no concern to a folder


def test_spark_is_told_only_where_tables_lie_on_a_store(tmp_path: Path) -> None:
    store = installation(tmp_path).store
    plain = (write_spark_conf(tmp_path / "a", tmp_path / "jars") / "spark-defaults.conf").read_text()
    text = (write_spark_conf(tmp_path / "a", tmp_path / "jars", store=store) / "spark-defaults.conf").read_text()
    assert "s3a" not in plain
    assert "spark.jars" not in plain
    settings = dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert settings["spark.jars"].split(",") == [str(path) for path in jar_paths(tmp_path / "jars", S3A)]
    assert settings["spark.delta.logStore.s3a.impl"] == "io.delta.storage.S3SingleDriverLogStore"
    assert text.startswith(plain), "the class path, and so the class archive, is the same"


def test_s3a_is_of_the_hadoop_that_pyspark_brings() -> None:
    (shipped,) = (Path(pyspark.__file__).parent / "jars").glob("hadoop-client-api-*.jar")
    assert shipped.name == f"hadoop-client-api-{HADOOP_VERSION}.jar"
    names = [jar.artifact for jar in S3A.jars]
    assert len(names) == len(set(names)) == 36
    assert not [name for name in names if name.startswith(("netty-t", "netty-c", "http-core", "bundle"))]


def test_the_address_book_remembers_where_and_no_key(tmp_path: Path) -> None:
    tools = Tools(Java("/java", 17, "PATH"), "/conf")
    ports = dict.fromkeys(("redis-log", "redis-online", "mlflow", "airflow", "api"), 1)
    variables = {
        "NIGHTJAR_HOME": str(tmp_path), "NIGHTJAR_LAKEHOUSE": "s3a://shop", "AWS_ENDPOINT_URL": ENDPOINT,
        "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s3cret",
    }  # fmt: skip
    write_book(variables, ports, tools)
    book = read_book(str(tmp_path))
    assert Environment.from_mapping(book).store == ObjectStore("shop", ENDPOINT, "us-east-1", virtual_hosts=False)
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & book.keys()
    write_book({**variables, "NIGHTJAR_LAKEHOUSE": "/folder"}, ports, tools)
    assert "AWS_ENDPOINT_URL" not in read_book(str(tmp_path))


# --- errors ------------------------------------------------------------------------------------------------------


ASKED = f"GET {ENDPOINT}/shop?list-type=2 in 1ms - Server returned"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{ASKED} 404\n<Code>NoSuchBucket</Code>", f"the bucket shop does not exist at {ENDPOINT}: create it"),
        (
            f"{ASKED} 403 <Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>k",
            r"know our key \(SignatureDoesNotMatch\): ",
        ),
        (f"{ASKED} 403 Forbidden <Code>AccessDenied</Code>", f"{ENDPOINT} refused us the bucket shop: its key"),
        (f"{ASKED} 403 Forbidden", f"{ENDPOINT} refused us the bucket shop: its key"),
        (f"{ASKED} 404 <Code>NoSuchKey</Code>", "Server returned 404 <Code>NoSuchKey</Code>$"),
        (f"{ASKED} 500 <Code>InternalError</Code>", "Server returned 500 <Code>InternalError</Code>$"),
        (f"{ASKED} 400 <Code>AuthorizationHeaderMalformed</Code>", "is in another region: set AWS_REGION"),
        ("Missing AccessKeyId", "no credentials for the bucket shop: set AWS_ACCESS_KEY_ID"),
        ("PUT http://169.254.169.254/latest/api/token - 403 Forbidden", "no credentials for the bucket shop"),
        (f"\x1b[31m{ASKED}\x1b[0m error sending request\n tcp", f"{ENDPOINT} does not answer: .* AWS_ENDPOINT_URL"),
        ("something\n   else", "^something else$"),
    ],
)
def test_an_engines_error_in_words(text: str, words: str) -> None:
    assert re.search(words, store_problem("s3a://shop/lake/default/x", OSError(text)))
    assert store_problem("/lake/default/x", OSError(text)) == re.sub(r"\x1b\[\d*m", "", text)


# --- one driver at a time ----------------------------------------------------------------------------------------


def _hold(env: Environment, seconds: float, ready) -> None:
    with commit_lock(env, "gold.item_ids"):
        ready.set()
        time.sleep(seconds)
        Path(env.home, "committed").touch()


@pytest.mark.parametrize("lake", [None, "lake"], ids=["store", "folder"])
def test_a_commit_waits_for_the_one_before_it(tmp_path: Path, lake: str | None) -> None:
    env = installation(tmp_path) if lake is None else installation(tmp_path, str(tmp_path / lake))
    ready = multiprocessing.get_context("fork").Event()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(env, 0.6, ready))
    other.start()
    assert ready.wait(10)
    with (
        pytest.raises(DependencyError, match=rf"process {other.pid} has been writing gold.item_ids for 0.1 s"),
        commit_lock(env, "gold.item_ids", wait_seconds=0.1),
    ):
        raise AssertionError("two drivers")
    with commit_lock(env, "gold.candidates", wait_seconds=0.0):  # another table is not its concern
        pass
    with commit_lock(env, "gold.item_ids", wait_seconds=10):
        assert Path(env.home, "committed").exists()
    other.join(10)
    assert other.exitcode == 0


def test_a_writer_is_one_in_a_folder_and_on_a_store(tmp_path: Path) -> None:
    here = installation(tmp_path, str(tmp_path / "lake"))
    for env in (here, installation(tmp_path)):
        with writer_lock(env, "stream_kafka"):
            held = Path(env.beside_tables, ".locks", "stream_kafka.lock")
            with (
                pytest.raises(DependencyError, match=f"is stream_kafka already.*{held}"),
                writer_lock(env, "stream_kafka"),
            ):
                pass


def test_spark_leaves_the_light_engines_tables_alone_on_a_store(tmp_path: Path) -> None:
    there = installation(tmp_path)
    with pytest.raises(
        ContractError, match=r"bronze\.events is written by archiver, and on an object store never by Spark"
    ):
        delta._path_of_ours(there, table("bronze.events"))
    assert delta._path_of_ours(there, table("silver.events")) == "s3a://shop/lake/default/silver/events"
    here = installation(tmp_path, str(tmp_path / "lake"))
    assert delta._path_of_ours(here, table("bronze.events")) == f"{tmp_path}/lake/default/bronze/events"
