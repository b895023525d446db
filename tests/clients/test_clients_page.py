"""The page on clients: its Python runs as written, its names are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.api.snippet import SOURCE
from tests.clients.served import ServedApi

PAGE = (Path(__file__).parents[2] / "infra" / "docs" / "clients.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.redis
def test_its_python_works_as_written(api: ServedApi) -> None:
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        program = block.replace("http://127.0.0.1:8000", api.url)
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert sorted(api.types()) == ["click", "purchase", "view_item"]
    assert {event["event_id"][14] for event in api.events()} == {"7"}


def test_its_names_are_those_of_the_script() -> None:
    source = SOURCE.read_text(encoding="utf-8")
    (api_line,) = re.findall(r"const api = \{(.*)\}", source)
    methods = set(re.findall(r"\b(track|page|consent|identify|recommend|flush|stats)\b", api_line))
    (example,) = blocks("js")
    assert set(re.findall(r"nightjar\.(\w+)\(", example)) == methods
    events = PAGE.partition("### What is sent when")[2].partition("### Consent")[0]
    told = re.findall(r"^\| `([a-z_]+)` \|", events, flags=re.MULTILINE)
    assert set(told) == set(re.findall(r"track\('([a-z_]+)'", source))
    assert len(told) == 6
