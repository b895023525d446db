"""Placements: the presets, the file, and what a request adds to its placement."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from feature_repo.contracts.errors import DataError
from feature_repo.contracts.placement_shapes import read_shapes
from serving.adapters.placements_file import load_placements
from serving.pipeline.list_rules import BEGUN, GIVEN, concerns_list
from serving.pipeline.placements import PRESETS, Placements, read_placements
from serving.pipeline.policy import KEEP, NO_RULES, SlatePolicy, SlateRules

FILE = """
[placements.home]
num_results = 30
filter = 'not tag == "adult"'
fatigue = 0

[placements.newsletter]
preset = "email"
bought = "90d"
diversity = 1

[placements.sidebar]
reasons = false
max_per_brand = 2
"""


def test_presets() -> None:
    assert list(PRESETS) == ["default", "home", "product_page", "cart", "search", "email", "raw"]
    assert PRESETS["default"].rules == NO_RULES
    assert PRESETS["raw"].rules.said() == {"seen": KEEP, "bought": KEEP}
    for name, placement in PRESETS.items():  # each could stand in a file
        said = {**placement.rules.said(), "num_results": placement.num_results, "reasons": placement.reasons}
        again = read_placements(json.dumps({"placements": {"again": said}}), is_json=True)
        assert (again.by_name["again"].rules, name) == (placement.rules, placement.name)


def test_a_file_over_the_presets() -> None:
    found = read_placements(FILE, is_json=False).by_name
    assert list(found)[-2:] == ["newsletter", "sidebar"]
    home, newsletter, sidebar = found["home"], found["newsletter"], found["sidebar"]
    assert (home.num_results, home.rules.filter, home.rules.fatigue) == (30, 'not tag == "adult"', 0.0)
    assert home.rules.diversity == PRESETS["home"].rules.diversity
    assert (newsletter.num_results, newsletter.rules.bought, newsletter.rules.diversity) == (6, "90d", 1.0)
    assert newsletter.rules.max_per_category == 2
    assert (sidebar.num_results, sidebar.reasons, sidebar.rules) == (10, False, SlateRules(max_per_brand=2))
    assert found["cart"] is PRESETS["cart"]


SHAPES = """
[placements.cart]
filter = false
[placements.basket]
preset = "cart"
num_results = 4
[placements.search]
filter = 'price < 5'
"""


@pytest.mark.parametrize("text", ["", FILE, SHAPES], ids=["none", "rules", "shapes"])
def test_batch_jobs_know_the_same_sizes_and_filters(text: str, tmp_path: Path) -> None:
    found = read_placements(text, is_json=False)
    (tmp_path / "placements.toml").write_text(text)
    (tmp_path / "placements.json").write_text(json.dumps(tomllib.loads(text)))
    for name in ("placements.toml", "placements.json"):
        shapes = read_shapes(str(tmp_path / name))
        assert shapes == {one.name: (one.num_results, one.rules.filter) for one in found.by_name.values()}
    assert read_shapes("") == {name: (one.num_results, one.rules.filter) for name, one in PRESETS.items()}


@pytest.mark.parametrize(
    "text",
    [
        "[placements.home", "placements = 3", "[placements]\nhome = 1", '[placements.home]\npreset = "hoem"',
        "[placements.home]\nnum_results = 0", "[placements.home]\nfilter = 'prise < 3'",
        "[placements.home]\nfilter = 7",
    ],
)  # fmt: skip
def test_batch_jobs_refuse_what_is_wrong_there(text: str, tmp_path: Path) -> None:
    (tmp_path / "placements.toml").write_text(text)
    with pytest.raises(DataError, match="placements"):
        read_shapes(str(tmp_path / "placements.toml"))
    with pytest.raises(DataError):
        read_placements(text, is_json=False)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[placement.home]", "no key 'placement' at the top; did you mean 'placements'?"),
        ("placements = 3", "a table"),
        ("[placements.home", "not TOML"),
        ("[placements]\nhome = 1", "placements.home is a table, got '1'"),
        ("[placements.home]\ndiversty = 0.3", "no key 'diversty'; did you mean 'diversity'?"),
        ("[placements.home]\ndiversity = 1.1", "placements.home.diversity is a number from 0 to 1, got '1.1'"),
        ("[placements.home]\ndiversity = true", "got 'True'"),
        ("[placements.home]\nexploration = 0.21", "from 0 to 0.2"),
        ("[placements.home]\nnum_results = 101", "a whole number from 1 to 100, got '101'"),
        ("[placements.home]\nnum_results = false", "got 'False'"),
        ("[placements.home]\nmax_per_brand = 0", "from 1 to 100, or false for none, got '0'"),
        ("[placements.home]\none_per_group = 1", "true or false, got '1'"),
        (
            "[placements.home]\nseen = 'sesion'",
            "session, keep or a span such as 30d, got 'sesion'; did you mean 'session'?",
        ),
        ("[placements.home]\nbought = 30", "a text, got '30'"),
        ("[placements.home]\nfilter = 'prise < 3'", "placements.home.filter: no field 'prise'; did you mean 'price'?"),
        ("[placements.x]\npreset = 'e-mail'", "got 'e-mail'; did you mean 'email'?"),
        ("[placements.home]\nfrequency_cap = 1001", "from 1 to 1000"),
        (f"[placements.{'x' * 65}]", "1 to 64 characters"),
    ],
)
def test_a_file_that_is_wrong(said: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_placements(said, is_json=False)
    assert words in str(caught.value)


def test_one_placement_with_a_ranker_is_enough_to_ask_one() -> None:
    assert not Placements().ask_ranker
    assert read_placements("[placements.home]\nranker = 'published'", is_json=False).ask_ranker


def test_the_file_of_a_setting(tmp_path: Path) -> None:
    assert load_placements("").by_name is PRESETS
    path = tmp_path / "p.json"
    path.write_text('{"placements": {"aside": {"num_results": 3}}}')
    assert load_placements(str(path)).by_name["aside"].num_results == 3
    path.write_text('{"placements": {"aside": {"num_result": 3}}}')
    with pytest.raises(DataError, match=r"p\.json: placements\.aside: no key 'num_result'; did you mean 'num_results'"):
        load_placements(str(path))
    with pytest.raises(DataError, match="NIGHTJAR_SERVING_PLACEMENTS: cannot read"):
        load_placements(str(tmp_path / "nowhere.toml"))


def test_the_policy_of_a_request() -> None:
    placements = read_placements("[placements.home]\nexploration = 0.1\ndiversity = 0.3", is_json=False)
    assert placements.policy("default", seed="r1") is None
    assert placements.policy("nowhere", seed="r1") is None
    unknown = placements.policy("nowhere", seed="r1", explain=True)
    assert unknown is not None
    assert (unknown.placement, unknown.is_known, unknown.rules) == ("default", False, NO_RULES)
    home = placements.policy("home", seed="r1")
    assert home is not None
    assert (home.rules.exploration, home.rules.diversity, home.seed) == (0.1, 0.3, "r1")
    asked = placements.policy("home", seed="r1", exploration=0.0, min_relevance=0.5, filter="price < 3")
    assert asked is not None
    assert (asked.rules.exploration, asked.rules.min_relevance, asked.rules.diversity) == (0.0, 0.5, 0.3)
    assert placements.policy("default", seed="r1", item_ids=("a",)) is not None
    assert placements.policy("search", seed="r1") == SlatePolicy(
        SlateRules(seen=KEEP, bought=KEEP), "search", reasons=False, seed="r1"
    )


def test_a_policy_comes_back_from_its_decision() -> None:
    policy = read_placements(FILE, is_json=False).policy(
        "newsletter", seed="r1", filter="price < 3", item_ids=("b", "a")
    )
    assert policy is not None
    logged = json.loads(json.dumps(policy.inputs()))
    assert SlatePolicy.from_inputs(logged, item_ids=["b", "a"], seed="r1") == policy
    assert SlatePolicy.from_inputs({**logged, "rules": {"later": 1}}, seed="").rules == NO_RULES
    plain = Placements().policy("search", seed="r2")
    assert plain is not None
    assert SlatePolicy.from_inputs(plain.inputs(), seed="r2") == plain


def test_a_ranker_is_no_rule_of_a_list() -> None:
    """So a list at such a placement takes no longer way than without."""
    ranked = SlatePolicy(SlateRules(ranker="published"), "front")
    capped = SlatePolicy(SlateRules(ranker="published", max_per_brand=1), "front")
    assert ranked.asks_ranker
    assert [concerns_list(ranked, habits) for habits in (GIVEN, BEGUN)] == [False, False]
    assert concerns_list(capped, GIVEN)
