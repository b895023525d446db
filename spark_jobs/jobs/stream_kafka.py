"""Kafka to bronze: a topic of events becomes rows of bronze.events_kafka, each message exactly once.

Reads   a Kafka topic, one JSON event in each message; bronze.users, bronze.user_changes (who does not allow storing)
Writes  bronze.events_kafka, bronze.quarantine_kafka; a checkpoint beside them; a line of JSON per batch on stdout

A batch is a range of offsets that the checkpoint holds before it is read. Both tables take a batch once (transaction
version = batch number of this checkpoint); what the batch is, is on disk before they do, and they before the checkpoint
calls it done: a job killed anywhere, or a machine, continues with the same range. SIGTERM and SIGINT end it after the
batch under way.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming import StreamingQuery

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.torn_commits import FOLDERS_ABOVE, sync
from spark_jobs.io.catalogue import read_users
from spark_jobs.io.commits import take_back_torn
from spark_jobs.io.delta import append_once
from spark_jobs.io.light_delta import arrow_schema, version
from spark_jobs.io.writer_lock import writer_lock
from spark_jobs.jobs.entry import run_command
from spark_jobs.jobs.maintain_tables import MAX_RETENTION_DAYS, maintain_table
from spark_jobs.session import get_session
from spark_jobs.transforms.consent import users_denying
from spark_jobs.transforms.kafka_messages import (
    ACCEPTED,
    EVENTS,
    NOT_STORED,
    QUARANTINE,
    QUARANTINED,
    arrow_columns,
    check_messages,
    count_messages,
    rows_for,
)

WRITER = "stream_kafka"
AVAILABLE_NOW = "available-now"
USER_TABLES = ("bronze.users", "bronze.user_changes")

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_QUERY_ID = "sql.streaming.queryId"
_POLL_SECONDS = 1
_NOTING_SECONDS = 10.0


def main(environment: Environment, arguments: argparse.Namespace) -> None:
    """The job: until the topic is read (available-now), or until somebody says stop."""
    options = source_options(arguments)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with writer_lock(environment, WRITER):
        take_back_torn(environment, {WRITER})
        spark = get_session("stream_kafka")
        try:
            stream(spark, environment, arguments, options, stopping)
        finally:
            spark.stop()


def stream(
    spark: SparkSession,
    environment: Environment,
    arguments: argparse.Namespace,
    options: Mapping[str, str],
    stopping: threading.Event,
) -> None:
    """Run the query until it ends or `stopping` is set. Raises DependencyError when it fails."""
    checkpoint = arguments.checkpoint or checkpoint_folder(environment, arguments.topic)
    batches = Batches(spark, environment, checkpoint=checkpoint, maintain_every=arguments.maintain_every)
    try:
        messages = spark.readStream.format("kafka").options(**options).load()
        writer = messages.writeStream.foreachBatch(batches.write).option("checkpointLocation", checkpoint)
        if arguments.trigger == AVAILABLE_NOW:
            writer = writer.trigger(availableNow=True)
        else:
            writer = writer.trigger(processingTime=f"{float(arguments.trigger)} seconds")
        query = writer.start()
        while not query.awaitTermination(_POLL_SECONDS) and not stopping.is_set():
            batches.report(query)
        if stopping.is_set():
            batches.close(query)
        batches.report(query)
    except PySparkException as error:
        raise DependencyError(f"the stream from topic {arguments.topic} failed: {_cause(error)}") from error
    except Py4JError as error:
        raise DependencyError(f"the stream from topic {arguments.topic} lost its Spark driver: {error}") from error


class Batches:
    """What happens to each batch of messages, and what is said about it."""

    def __init__(self, spark: SparkSession, environment: Environment, *, checkpoint: str, maintain_every: int) -> None:
        self._spark = spark
        self._environment = environment
        self._checkpoint = checkpoint
        self._maintain_every = maintain_every
        self._schema = arrow_columns(arrow_schema(name) for name in (EVENTS, QUARANTINE))
        self._counts: dict[int, dict[str, int]] = {}
        self._refusing: tuple[dict[str, int], frozenset[str]] = ({}, frozenset())
        self._writing = threading.Lock()
        self._is_closed = False

    def close(self, query: StreamingQuery) -> None:
        """End the query when the batch under way is written and noted in the checkpoint; the next one stays to be done.

        A batch that is written and not noted would be done again, and change nothing.
        """
        with self._writing:
            self._is_closed = True
        give_up_at = time.monotonic() + _NOTING_SECONDS
        while self._counts and query.isActive and time.monotonic() < give_up_at:
            time.sleep(0.05)
            self.report(query)
        query.stop()

    def write(self, messages: DataFrame, batch: int) -> None:
        """Both tables take the batch, each in one commit, each once."""
        with self._writing:
            if self._is_closed:
                raise DependencyError(f"batch {batch} came after the stop: it is done after the next start")
            sync_checkpoint(self._checkpoint, batch)
            # another checkpoint counts its batches from 0 again: its name keeps the two apart
            app_id = f"kafka:{messages.sparkSession.sparkContext.getLocalProperty(_QUERY_ID)}"
            checked = check_messages(messages, schema=self._schema, refusing=self._users_refusing()).persist()
            try:
                counts = count_messages(checked)
                for name, count in ((EVENTS, counts["rows"]), (QUARANTINE, counts[QUARANTINED])):
                    if count:
                        append_once(rows_for(checked, name), self._environment, name, app_id=app_id, version=batch)
            finally:
                checked.unpersist()
            if self._maintain_every and batch and batch % self._maintain_every == 0:
                self._maintain()
            self._counts[batch] = counts

    def report(self, query: StreamingQuery) -> None:
        """One line for each batch that ended since the last report."""
        for progress in query.recentProgress:
            counts = self._counts.pop(int(progress["batchId"]), None)
            if counts is not None:
                print(json.dumps(batch_line(json.loads(progress.json), counts), sort_keys=True), flush=True)

    def _users_refusing(self) -> frozenset[str]:
        """Users who do not allow storing, as their tables stand; asked anew when one of those has changed."""
        newest = {name: version(self._environment, name) for name in USER_TABLES}
        if newest != self._refusing[0]:
            users = read_users(self._spark, self._environment, newest)
            self._refusing = (newest, frozenset(row[0] for row in users_denying(users, "store").collect()))
        return self._refusing[1]

    def _maintain(self) -> None:
        """Compact and vacuum both tables: nobody else may write them."""
        for name in (EVENTS, QUARANTINE):
            if version(self._environment, name) >= 0:
                maintain_table(self._spark, self._environment, name, dry_run=False, retention_days=MAX_RETENTION_DAYS)


def batch_line(progress: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """What is said about a batch: `read` = accepted + quarantined + not_stored messages, `rows` of bronze.events_kafka.

    `offsets` are where the next batch begins, `lag` the messages behind that, both by `<topic>/<partition>`. The lag is
    null when Spark did not ask the broker: of a batch that is done again after a restart.
    """
    [source] = progress["sources"]
    ends, newest = _by_partition(source["endOffset"]), _by_partition(source.get("latestOffset"))
    return {
        "batch": progress["batchId"],
        "read": counts[ACCEPTED] + counts[QUARANTINED] + counts[NOT_STORED],
        **counts,
        "seconds": progress["durationMs"].get("triggerExecution", 0) / 1000,
        "offsets": ends,
        "lag": {name: max(0, newest[name] - end) if name in newest else None for name, end in ends.items()},
    }


def _by_partition(offsets: Any) -> dict[str, int]:
    document = json.loads(offsets) if isinstance(offsets, str) else offsets or {}
    return {f"{topic}/{number}": end for topic, ends in sorted(document.items()) for number, end in ends.items()}


def checkpoint_folder(environment: Environment, topic: str) -> str:
    """`.kafka/<topic>` beside the tables: it goes where they go, and renames, so it lies on a file system."""
    return f"{environment.beside_tables}/.kafka/{topic}"


def sync_checkpoint(checkpoint: str, batch: int) -> None:
    """fsync what a checkpoint in a folder says of a batch, before a table takes it: Spark does not.

    A table that has batch 7 refuses it for ever. Should a power cut take what batch 7 is, Spark would make a larger one
    of that number, and what came in between would be in no table.
    """
    if "://" in checkpoint:
        return
    root = Path(checkpoint.removeprefix("file:"))
    sources = [*root.glob("sources/*")]
    said = [root / "metadata", root / "offsets" / str(batch)]
    for path in (
        *(found for each in said for found in (each, each.with_name(f".{each.name}.crc"))),
        *(file for source in sources for file in source.iterdir()),
        *(root / "offsets", *sources, root / "sources", root, *root.parents[:FOLDERS_ABOVE]),
    ):
        if path.exists():
            sync(path)


def source_options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options of Spark's Kafka source. Raises DataError on an argument that cannot be one."""
    if not _TOPIC.fullmatch(arguments.topic) or arguments.topic in (".", ".."):
        raise DataError(f"a topic's name has letters, digits, '.', '_' and '-', got {arguments.topic!r}", field="topic")
    if arguments.trigger != AVAILABLE_NOW and not _is_positive(arguments.trigger):
        raise DataError(
            f"--trigger is {AVAILABLE_NOW} or a number of seconds above 0, got {arguments.trigger!r}", field="trigger"
        )
    starting = arguments.starting_offsets
    if starting not in ("earliest", "latest"):
        starting = json.dumps({arguments.topic: _offsets(starting)})
    options = {
        "subscribe": arguments.topic,
        "startingOffsets": starting,
        "failOnDataLoss": str(not arguments.skip_lost_offsets).lower(),
        "kafka.isolation.level": "read_committed",  # what an aborted transaction wrote was never said
        **{f"kafka.{name}": value for name, value in read_properties(arguments.properties_file).items()},
        "kafka.bootstrap.servers": arguments.bootstrap_servers,
    }
    if arguments.max_offsets_per_trigger:
        options["maxOffsetsPerTrigger"] = str(arguments.max_offsets_per_trigger)
    return options


def read_properties(path: str | None) -> dict[str, str]:
    """A Java properties file of Kafka's client settings: `name=value` lines, `#` and `!` remarks. {} without a file.

    Raises DataError on a line without `=`, and when the file cannot be read. Values are never shown.
    """
    if path is None:
        return {}
    try:
        lines: Iterable[str] = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--properties-file {path} cannot be read: {error}", field="properties_file") from error
    found: dict[str, str] = {}
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if not line or line[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise DataError(f"{path}, line {number}: expected name=value", field="properties_file")
        found[name.strip()] = value.strip()
    return found


def _offsets(text: str) -> dict[str, int]:
    """`0=12,1=40` as {"0": 12, "1": 40}; -2 is the earliest of a partition, -1 the latest."""
    parts = [part.split("=") for part in text.split(",")]
    if not all(len(part) == 2 and part[0].isdigit() and re.fullmatch(r"-[12]|\d+", part[1]) for part in parts):
        raise DataError(
            f"--starting-offsets is earliest, latest, or PARTITION=OFFSET,... such as 0=12,1=40; got {text!r}",
            field="starting_offsets",
        )
    return {partition: int(offset) for partition, offset in parts}


def _is_positive(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None and float(text) > 0


def _cause(error: PySparkException) -> str:
    """The first line of what a person can use; a missing source means that its jars are not in `spark.jars`."""
    text = str(error)
    if "kafka" in text and ("DATA_SOURCE_NOT_FOUND" in text or "Failed to find" in text):
        return "Spark has no Kafka jars; `nightjar kafka stream` fetches them and starts this job with them"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bootstrap-servers", required=True, help="host:port,host:port of the brokers")
    parser.add_argument("--topic", required=True)
    parser.add_argument(
        "--starting-offsets", default="earliest",
        help="where a new checkpoint begins: earliest, latest, or PARTITION=OFFSET,... (default: earliest)",
    )  # fmt: skip
    parser.add_argument(
        "--trigger", default="10",
        help=f"{AVAILABLE_NOW} (read what is there, then end), or seconds between the starts of batches (default: 10)",
    )  # fmt: skip
    parser.add_argument("--max-offsets-per-trigger", type=int, default=100_000, help="messages in a batch; 0: no limit")
    parser.add_argument("--properties-file", help="Kafka client settings, name=value lines (security.protocol=...)")
    parser.add_argument("--checkpoint", help="default: <lakehouse>/<tenant>/.kafka/<topic>")
    parser.add_argument(
        "--skip-lost-offsets", action="store_true", help="go on when the broker has deleted messages never read"
    )
    parser.add_argument("--maintain-every", type=int, default=500, help="batches between compactions; 0: never")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
