"""What reading from Kafka needs beside the default setup: four jars, and a program that Spark starts with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from feature_repo.contracts.environment import Environment
from infra.local.jars import Jar, JarSet, ensure_jars, jar_paths
from infra.local.setup import prepare
from infra.local.store_jars import S3A
from infra.local.variables import REPOSITORY, SETTINGS, cluster_master, known_addresses

_KEPT_OUT = "org.scala-lang.modules:*,org.slf4j:*,at.yawk.lz4:*,org.xerial.snappy:*,com.google.code.findbugs:*"
KAFKA_SOURCE = JarSet(
    "Kafka",
    (
        Jar("org.apache.spark", "spark-sql-kafka-0-10_2.13", "4.2.0", 494879,
            "64539c45e5d39f7ddb747312c239f38f5208d08c1a0ddf7d70beb2fbd9373705"),
        Jar("org.apache.spark", "spark-token-provider-kafka-0-10_2.13", "4.0.0", 64975,
            "f2be3b76f9e6cbe63379d4e4e0dc14f59dbf056ae2ad16ff15ac108004c86767"),
        Jar("org.apache.kafka", "kafka-clients", "3.9.2", 9220052,
            "014b4ef36884478a932641818b080c36a8f8e2e92dc771e800c9d2694f4f83d8"),
        Jar("org.apache.commons", "commons-pool2", "2.13.1", 156457,
            "f77a5060d6936a9144023584232f9de3f2248f1abfe156e9d31795f18770674f"),
    ),
    (
        ("org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0",
         f"org.apache.spark:spark-token-provider-kafka-0-10_2.13,{_KEPT_OUT}"),
        ("org.apache.spark:spark-token-provider-kafka-0-10_2.13:4.0.0", f"org.apache.kafka:*,{_KEPT_OUT}"),
    ),
)  # fmt: skip
"""The token provider is the newest that could be resolved when these were pinned. The source calls three of its
classes, by the signatures that 4.0.0 has; what changed since (how Spark names log keys) matters only with delegation
tokens of Kerberos, which are not supported here."""

JOB = "spark_jobs.jobs.stream_kafka"


def stream_process(
    options: Sequence[str], variables: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the job with these options; fetches the jars at the first time.

    Runs where the nights run: on the cluster when one is up, else on this machine's threads. Needs no running stack.
    Raises DependencyError with the remedy when Java or a jar cannot be had.
    """
    known = known_addresses(os.environ if variables is None else variables)
    environment = Environment.from_mapping(known)
    tools = prepare(known)
    folder = Path(environment.jars)
    ensure_jars(folder, java_home=tools.java.home, variables=known, jar_set=KAFKA_SOURCE)
    jars = [*jar_paths(folder), *jar_paths(folder, KAFKA_SOURCE)]
    if environment.store is not None:
        jars += jar_paths(folder, S3A)
    settings = {"spark.jars": ",".join(str(path.absolute()) for path in jars)}
    if master := cluster_master(environment.home):
        settings["spark.master"] = master
    submit = " ".join(f'--conf "{name}={value}"' for name, value in settings.items())
    child = {
        **known,
        **SETTINGS,
        "NIGHTJAR_HOME": environment.home,
        "JAVA_HOME": tools.java.home,
        "SPARK_CONF_DIR": tools.spark_conf,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": f"{submit} pyspark-shell",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), known.get("PYTHONPATH")])),
    }
    return [sys.executable, "-m", JOB, *options], child
