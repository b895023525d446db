"""Alert rules and dashboards: evaluated by promtool, and about metrics that exist.

promtool comes with Prometheus. Where it is neither installed nor to be had, its tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from infra.local.promtool import find_promtool
from tests.conftest import ROOT
from tests.operations.exposed import families, fill

PROMETHEUS = ROOT / "infra" / "prometheus"
DASHBOARDS = ROOT / "infra" / "grafana" / "dashboards"
RUNBOOKS = ROOT / "infra" / "docs" / "runbooks.md"
CASES = ("alerts_test.yml", "alerts_days_test.yml")

FOREIGN = {"up", "redis_up", "redis_memory_used_bytes", "redis_memory_max_bytes"}
"""Of Prometheus itself and of redis_exporter."""

NAME = re.compile(r"\b(nightjar(?:_[a-z0-9_]+|:[a-z0-9_]+:[a-z0-9_]+)|redis_[a-z_]+)\b")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def panels(name: str) -> list[dict[str, Any]]:
    found = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def dashboard_names() -> list[str]:
    return sorted(path.stem for path in DASHBOARDS.glob("*.json"))


def expressions() -> dict[str, str]:
    """Where it stands -> PromQL, of every rule and panel."""
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    for name in dashboard_names():
        board = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
        for annotation in board["annotations"]["list"]:
            found[f"{name}: {annotation['name']}"] = annotation["expr"]
        for panel in panels(name):
            for target in panel["targets"]:
                found[f"{name}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


@pytest.fixture
def exposed(tmp_path: Path, redis_url: str) -> set[str]:
    """Every series name of the real services, buckets and sums included."""
    home = Environment.from_mapping(
        {names.HOME: str(tmp_path), names.REDIS_LOG_URL: redis_url, names.REDIS_ONLINE_URL: redis_url}
    )
    fill(home)
    found = set()
    for family in families(home):
        ends = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        found |= {family.name + end for end in ends}
    return found


@pytest.mark.redis
def test_rules_and_dashboards_use_only_metrics_that_exist(exposed: set[str]) -> None:
    wanted = {where: set(NAME.findall(text)) for where, text in expressions().items()}
    assert len(wanted) > 100
    assert [where for where, used in wanted.items() if not used and "up{" not in expressions()[where]] == []
    unknown = {where: used - exposed - RECORDED - FOREIGN for where, used in wanted.items()}
    assert {where: used for where, used in unknown.items() if used} == {}


def test_every_alert_says_what_why_and_what_to_do() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    anchors = {anchor(heading) for heading in headings}
    assert len(anchors) == len(headings)
    assert len(ALERTS) >= 25
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert len(rule["annotations"]["description"]) > 40, name
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / page) == RUNBOOKS, name
        assert section in anchors, name
        # and the section knows the alert
        body = text.split(f"## {next(h for h in headings if anchor(h) == section)}\n")[1].split("\n## ")[0]
        assert re.search(rf"^Alerts?: .*\b{name}\b", body, re.MULTILINE), f"{section} does not name {name}"
    named = set(re.findall(r"\bNightjar[A-Z]\w+", text))
    assert named == set(ALERTS)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def test_links_inside_the_run_books_lead_somewhere() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 5
    anchors = {anchor(line.removeprefix("## ")) for line in text.splitlines() if line.startswith("## ")}
    for link in links:
        page, _, section = link.partition("#")
        assert not page or (RUNBOOKS.parent / page).exists(), link
        assert not section or section in anchors, link


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    cases: dict[str, set[bool]] = {}
    for file in CASES:
        for test in yaml.safe_load((PROMETHEUS / file).read_text(encoding="utf-8"))["tests"]:
            for check in test.get("alert_rule_test", []):
                cases.setdefault(check["alertname"], set()).add(bool(check.get("exp_alerts")))
    assert cases == {name: {True, False} for name in ALERTS}


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return find_promtool(os.environ, ROOT / ".nightjar" / "tools")
    except DependencyError as error:
        pytest.skip(f"the rules are not evaluated: {error}")


class TestPromtool:
    def test_configuration_and_rules_are_valid(self, program: Path) -> None:
        assert "SUCCESS" in promtool(program, "check", "config", "prometheus.yml")
        assert f"{len(rules())} rules found" in promtool(program, "check", "rules", "alerts.yml")

    @pytest.mark.parametrize("file", CASES)
    def test_every_alert_fires_when_it_should_and_only_then(self, program: Path, file: str) -> None:
        assert "SUCCESS" in promtool(program, "test", "rules", file)

    def test_every_panel_is_promql(self, program: Path, tmp_path: Path) -> None:
        found = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(expressions().values())]
        file = tmp_path / "panels.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": found}]}))
        assert f"{len(found)} rules found" in promtool(program, "check", "rules", str(file))


def test_promtool_is_fetched_once_where_there_is_none(tmp_path: Path) -> None:
    tools, fetched = tmp_path / "tools", tmp_path / "fetched"
    tools.mkdir()
    scripts = {
        "apt-get": f'#!/bin/sh\n[ "$*" = "download prometheus" ] && echo x > p_1.deb && echo one >> {fetched}\n',
        "dpkg": '#!/bin/sh\n[ "$1 $2" = "-x p_1.deb" ] && mkdir -p $3/usr/bin && echo program > $3/usr/bin/promtool\n',
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    variables = {"PATH": f"{tools}:/bin"}
    assert shutil.which("promtool", path=variables["PATH"]) is None
    found = [find_promtool(variables, tmp_path / "kept") for _ in range(2)]
    assert found == [tmp_path / "kept" / "promtool"] * 2
    assert found[0].read_text() == "program\n"
    assert fetched.read_text() == "one\n"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["promtool"]
    (tools / "apt-get").write_text("#!/bin/sh\necho no such package >&2; exit 100\n")
    with pytest.raises(DependencyError, match=r"no such package; install it .*apt install prometheus"):
        find_promtool(variables, tmp_path / "other")


def promtool(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["events", "nightly", "serving"])
def test_a_panel_says_what_it_shows_in_which_unit(name: str) -> None:
    assert dashboard_names() == ["events", "nightly", "serving"]
    board = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    assert board["uid"] == f"nightjar-{name}"
    sources = list((ROOT / "infra/grafana/provisioning/datasources").glob("*.yml"))
    source = yaml.safe_load(sources[0].read_text())["datasources"][0]["uid"]
    found = panels(name)
    assert len(found) >= 14
    assert len({panel["title"] for panel in found}) == len(found)
    anchors = {anchor(h) for h in re.findall(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)}
    taken: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert {t["datasource"]["uid"] for t in panel["targets"]} == {source}
        for link in panel.get("links", []):
            assert link["url"].removeprefix("${runbooks}#") in anchors, panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
    others = {link["url"].removeprefix("/d/nightjar-") for link in board["links"] if link["url"].startswith("/d/")}
    assert others == set(dashboard_names()) - {name}
