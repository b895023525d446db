"""A real Kafka broker of one node (KRaft) on loopback, and Java's own client to fill it, driven through Py4J.

The broker's jars are fetched when a test first asks for it, pinned like the others; what pyspark ships is not fetched.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

from infra.local.jars import Jar, JarSet, ensure_jars, jar_paths
from infra.local.java import choose_java

_KAFKA = "3.9.2"
_UNUSED = (
    "com.fasterxml.*:*,com.thoughtworks.*:*,com.google.*:*,io.netty:*,io.dropwizard.*:*,commons-beanutils:*,"
    "commons-cli:*,commons-collections:*,commons-digester:*,commons-io:*,commons-logging:*,"
    "org.apache.yetus:*,org.bitbucket.*:*,org.slf4j:*,org.xerial.*:*,at.yawk.*:*,com.github.luben:*"
)
BROKER = JarSet(
    "Kafka broker",
    (
        Jar("org.apache.kafka", "kafka_2.13", _KAFKA, 4727916,
            "dddf49b18c931301fece0048a76d6b0956c36c8b1d1fc721bfed318aa6ee3e4f"),
        Jar("org.apache.kafka", "kafka-clients", _KAFKA, 9220052,
            "014b4ef36884478a932641818b080c36a8f8e2e92dc771e800c9d2694f4f83d8"),
        Jar("org.apache.kafka", "kafka-metadata", _KAFKA, 867907,
            "ffe970aee12f00df4b0162f31c719df7c412f9207c166a74cef6611be25a255e"),
        Jar("org.apache.kafka", "kafka-raft", _KAFKA, 288382,
            "f897533828e55ac466a5b183a25dccbe5a7b97c02162dac38e25338feddfe422"),
        Jar("org.apache.kafka", "kafka-server", _KAFKA, 108024,
            "4f8667dbd664c4b0906e05499cfdc5f558f14c098b77fa6c09656cceb62a63ef"),
        Jar("org.apache.kafka", "kafka-server-common", _KAFKA, 294396,
            "0374b3f13c3c4b7fd446d35df1ccb0c60931ea27d4972b4de1bb1d548a87f5b2"),
        Jar("org.apache.kafka", "kafka-storage", _KAFKA, 359015,
            "8a3d7b67dfcd34b1334d4994ed4106ba9c9b37ebcbb177ac47ff44050e8ab84b"),
        Jar("org.apache.kafka", "kafka-storage-api", _KAFKA, 26870,
            "565ab8540b50c7f00ea62c77a6639237ed3a80550245be70dc733f157cd280d6"),
        Jar("org.apache.kafka", "kafka-group-coordinator", _KAFKA, 548538,
            "d4d57f0955895cc38381f346f5ff7eba487afafa5ba264804af18393305b32fd"),
        Jar("org.apache.kafka", "kafka-group-coordinator-api", _KAFKA, 12604,
            "bd903ba506c8309401a331ef1b826612d1cb95862879551031428da5cf50eab6"),
        Jar("org.apache.kafka", "kafka-transaction-coordinator", _KAFKA, 30916,
            "d6ca25648111dfd11f76d3d0f7f51a9458784b645f4e56ce34fbc58d9c9d0296"),
        Jar("org.apache.kafka", "kafka-tools-api", _KAFKA, 9052,
            "501ac034b93853c3dcba4b49e32c7c795de109a96b8ab6d59a9ab19e6ef11491"),
        Jar("com.yammer.metrics", "metrics-core", "2.2.0", 82123,
            "6b7a14a6f34c10f8683f7b5e2f39df0f07b58c7dff0e468ebbc713905c46979c"),
        Jar("net.sf.jopt-simple", "jopt-simple", "5.0.4", 78146,
            "df26cc58f235f477db07f753ba5a3ab243ebe5789d9f89ecf68dd62ea9a66c28"),
        Jar("net.sourceforge.argparse4j", "argparse4j", "0.7.0", 90347,
            "65ceb669d88f63306c680f8088bbf765bbca72d288a61a03703000076c3d3f56"),
        Jar("org.pcollections", "pcollections", "4.0.1", 73684,
            "1f82766d7c3221930854033bebff5073ea46b43f27326074bbe15d148c18bfb3"),
        Jar("org.apache.zookeeper", "zookeeper", "3.8.4", 1323991,
            "2d77b152039e7f85dc5438a9304febff86a2f3e55c88976a8be309af39028e97"),
        Jar("org.scala-lang.modules", "scala-java8-compat_2.13", "1.0.2", 640088,
            "90d5b13656be93fb779b8d7c723efa2498a34af06273bb5204afb65f85a20c1b"),
        Jar("com.typesafe.scala-logging", "scala-logging_2.13", "3.9.5", 61858,
            "87a3017d3f43e6ace7566fe4c3d615134c6914ff871c8d64bb32ca1d996d0545"),
        Jar("commons-validator", "commons-validator", "1.10.1", 203132,
            "ed74711a78d793ca37f6075e4a1e93d107233dfd20d0bb17e32bad88d38e56aa"),
        Jar("com.github.ben-manes.caffeine", "caffeine", "2.9.3", 912143,
            "1e0a7bbef1dd791653143f3f05d0e489934bf5481e58a87c9e619cd46b68729b"),
    ),
    ((f"org.apache.kafka:kafka_2.13:{_KAFKA}", _UNUSED),),
)  # fmt: skip

_SHIPPED = ("scala-library", "scala-reflect", "jackson-core-2", "jackson-databind-2", "jackson-annotations-2",
            "slf4j-api", "py4j-", "snappy-java", "lz4-java", "zstd-jni")  # fmt: skip
_START_SECONDS = 120.0
_SERIALIZER = "org.apache.kafka.common.serialization.ByteArraySerializer"


@dataclass(frozen=True)
class Sent:
    """One message to send. `timestamp_ms` is the record's own time; `value` None is a tombstone."""

    value: bytes | None
    partition: int
    timestamp_ms: int


@dataclass(frozen=True)
class Broker:
    """A running broker."""

    address: str
    gateway: JavaGateway

    def create_topic(self, name: str, partitions: int) -> None:
        jvm = self.gateway.jvm
        admin = jvm.org.apache.kafka.clients.admin.Admin.create(self._properties())
        topic = jvm.org.apache.kafka.clients.admin.NewTopic(name, partitions, 1)
        admin.createTopics([topic]).all().get()
        admin.close()

    def send(self, topic: str, messages: Sequence[Sent], *, aborted: bool = False) -> list[tuple[int, int]]:
        """Send in order and wait for the broker; (partition, offset) of each. `aborted`: in a transaction given up."""
        kafka = self.gateway.jvm.org.apache.kafka.clients.producer
        more = {"transactional.id": uuid.uuid4().hex} if aborted else {}
        producer = kafka.KafkaProducer(self._properties(**more))
        if aborted:
            producer.initTransactions()
            producer.beginTransaction()
        futures = [
            producer.send(kafka.ProducerRecord(topic, each.partition, each.timestamp_ms, None, each.value))
            for each in messages
        ]
        producer.flush()
        places = [(future.get().partition(), future.get().offset()) for future in futures]
        if aborted:
            producer.abortTransaction()
        producer.close()
        return places

    def _properties(self, **more: str) -> Mapping[str, str]:
        return {
            "bootstrap.servers": self.address, "key.serializer": _SERIALIZER, "value.serializer": _SERIALIZER, **more,
        }  # fmt: skip


@contextlib.contextmanager
def running_broker(folder: Path, jars: Path) -> Iterator[Broker]:
    """Start a broker with its data in `folder`, on free ports; stop it at the end."""
    java = choose_java(os.environ, folder / "java")
    ensure_jars(jars, java_home=java.home, variables=os.environ, jar_set=BROKER)
    shipped = [
        path for path in Path(pyspark.__file__).parent.joinpath("jars").iterdir() if path.name.startswith(_SHIPPED)
    ]
    classpath = os.pathsep.join(map(str, [*jar_paths(jars, BROKER), *shipped]))
    program = str(Path(java.home) / "bin" / "java")
    port, controller = _free_ports(2)
    properties = folder / "server.properties"
    settings = {
        "process.roles": "broker,controller", "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}", "controller.listener.names": "CONTROLLER",
        "log.dirs": str(folder / "data"), "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1", "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1", "transaction.state.log.num.partitions": "1",
    }  # fmt: skip
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    small = [program, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", classpath]
    formatted = subprocess.run(
        [*small, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
        capture_output=True, text=True, timeout=_START_SECONDS,
    )  # fmt: skip
    assert formatted.returncode == 0, formatted.stderr
    with (folder / "broker.log").open("wb") as log:
        server = subprocess.Popen([*small, "kafka.Kafka", str(properties)], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, server, folder / "broker.log")
        py4j_jar = next(str(path) for path in shipped if path.name.startswith("py4j-"))
        client = launch_gateway(
            jarpath=py4j_jar, classpath=classpath, java_path=program, javaopts=["-Xmx128m"], die_on_exit=True
        )
        gateway = JavaGateway(gateway_parameters=GatewayParameters(port=client, auto_convert=True))
        try:
            yield Broker(f"127.0.0.1:{port}", gateway)
        finally:
            gateway.shutdown()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_for(port: int, server: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.1)
