"""The request mix of the serving benches: `infra/bench/mix.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from serving.pipeline.placements import Placements, read_placements

MIX_FILE = Path(__file__).parents[1] / "mix.json"
WITHOUT_CHANCE = "home_without_chance"
"""A placement of the usual mix: its own without exploration."""


class MixName(StrEnum):
    """`usual`: a placement with rules and exploration, and a session index. `plain`: neither."""

    USUAL = "usual"
    PLAIN = "plain"


def read_mix(name: MixName = MixName.USUAL) -> dict[str, Any]:
    """The mix; only the usual one has a `placement`, and with it what its shop has besides."""
    mix: dict[str, Any] = json.loads(MIX_FILE.read_text())
    usual = mix.pop("usual")
    return mix | usual if name is MixName.USUAL else mix


def write_placements(mix: Mapping[str, Any], path: Path) -> Placements:
    """The placements of a mix, written as an installation has them in a file."""
    text = json.dumps({"placements": mix.get("placements", {})})
    path.write_text(text)
    return read_placements(text, is_json=True)
