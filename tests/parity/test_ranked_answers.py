"""The order of an answer with what Feast has online is that of the night with what lies in its tables: on real Delta,
Feast and Redis."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pyarrow as pa

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.ranker_file import CATEGORY_VIEW, ITEM_VIEW, USER_VIEW, number_features, unpack_ranker
from feature_repo.contracts.run import Run
from feature_repo.contracts.tree_text import read_trees
from serving.adapters.feature_store import RedisFeatureStore
from serving.adapters.ranker_features import RankerFeatures
from serving.pipeline.ranker import PersonFeatures, RequestRanker
from spark_jobs.io.entity_features import load_entity_features
from spark_jobs.io.feature_store import open_store
from spark_jobs.jobs import materialize_features
from spark_jobs.models.answer_ranker import AnswerRanker, Best
from spark_jobs.models.ranker import grow_trees
from tests.builders import write_rows
from tests.parity.test_feast_features import AS_OF, MARCH_8_MICROS, feature_row, key_of, write

PEOPLE, ITEMS, DEPTH = 60, 50, 30
CATEGORIES = [None if n % 9 == 4 else f"Küche > C{n % 7}" for n in range(ITEMS)]


def category_of(number: int) -> str:
    return f"Küche > C{number % 7}"


def tables(env: Environment) -> Run:
    """Items 0 to 39 have features; people have rows in three of seven categories, one left by another night."""
    for view, count in ((USER_VIEW, PEOPLE), (ITEM_VIEW, 40)):
        write(env, view.name, [feature_row(view, n) for n in range(count)])
    pairs = [
        {
            **feature_row(CATEGORY_VIEW, 7 * n + c),
            "user_id": key_of("user_id", n),
            "category": f"Küche > C{(n + c) % 7}",
        }
        for n in range(PEOPLE)
        for c in range(2)
    ]
    old = [
        {**feature_row(CATEGORY_VIEW, 900 + n, date(2024, 3, 7)), "user_id": key_of("user_id", n),
         "category": category_of(n + 2)}
        for n in range(PEOPLE)
    ]  # fmt: skip
    write(env, CATEGORY_VIEW.name, old)
    write_rows(
        env, "bronze.items", [{"item_id": key_of("item_id", n), "category": c} for n, c in enumerate(CATEGORIES)]
    )
    yesterday = Run("y", "default", "2024-03-07", {}, None, True, "", "m", "test")
    for view, count in ((USER_VIEW, 1), (ITEM_VIEW, 1)):
        write(env, view.name, [feature_row(view, n, date(2024, 3, 7)) for n in range(count)])
    materialize_features.main(env, yesterday)
    for view, count in ((USER_VIEW, PEOPLE), (ITEM_VIEW, 40)):
        write(env, view.name, [feature_row(view, n) for n in range(count)])
    write(env, CATEGORY_VIEW.name, pairs)
    night = Run("k", "default", AS_OF.isoformat(), {"bronze.items": 0}, None, True, "", "m", "test")
    materialize_features.main(env, night)
    return night


def best_of(rng: np.random.Generator) -> Best:
    """An answer: 30 items, some of them of the session alone."""
    bases = np.where(rng.random(DEPTH) < 0.2, np.nan, rng.random(DEPTH))
    votes = np.where(rng.random(DEPTH) < 0.5, 0.0, rng.random(DEPTH))
    numbers = rng.permutation(ITEMS)[:DEPTH].astype(np.int32)
    return Best(numbers, np.sort(rng.random(DEPTH))[::-1], bases, votes, float(rng.random() * 3))


async def test_what_is_read_when_asked_gives_the_order_of_the_night(environment: Environment, redis_url: str) -> None:
    env = environment._replace(redis_online_url=redis_url)
    night = tables(env)
    numbers = pa.table({"item_id": [key_of("item_id", n) for n in range(ITEMS)], "item_number": list(range(ITEMS))})
    features = load_entity_features(env, numbers, ITEMS, night, AS_OF)
    assert features is not None
    ranker = AnswerRanker({"by_category": True, "depth": DEPTH, "least_rows": 5, "rounds": 200})
    rng = np.random.default_rng(8)
    user_rows = [features.user_rows.get(key_of("user_id", n), len(features.user_values) - 1) for n in range(PEOPLE)]
    answers = [best_of(rng) for _ in range(PEOPLE)]
    table = np.concatenate([ranker.inputs(best, features, row) for best, row in zip(answers, user_rows, strict=True)])
    names = ranker.input_names(features)
    ranker.text = grow_trees(table, rng.random(len(table)) < 0.2, [DEPTH] * PEOPLE, names, ranker.params)
    used = set(read_trees(ranker.text).used)
    assert min(len(used & set(number_features(v))) for v in (USER_VIEW, ITEM_VIEW, CATEGORY_VIEW)) >= 3

    served = RequestRanker(unpack_ranker(ranker.file(features)), "0" * 8)
    reader, store = RankerFeatures(RedisFeatureStore(redis_url, timeout_seconds=30)), open_store(env)
    moved = with_rows = 0
    for n, (best, row) in enumerate(zip(answers, user_rows, strict=True)):
        order = best.numbers.tolist()
        categories = [CATEGORIES[number] for number in order]
        wanted = served.wants(key_of("user_id", n), categories, MARCH_8_MICROS)
        known = await reader.read(wanted)
        assert isinstance(known, PersonFeatures)
        assert known.micros == MARCH_8_MICROS
        columns = (dict(zip(order, c.tolist(), strict=True)) for c in (best.scores, best.bases, best.votes))
        scores, bases, votes = columns
        bases = {number: base for number, base in bases.items() if not math.isnan(base)}
        found, ranking = served.rank(order, scores, bases, votes, best.weight, categories, known)
        assert found == ranker.order(best, features, row).tolist(), n
        assert ranking.reason is None
        moved += found != order
        with_rows += len(known.by_category)
        asked = [f"{USER_VIEW.name}:{name}" for name in served.user_features]
        said = store.get_online_features(features=asked, entity_rows=[{"user_id": key_of("user_id", n)}]).to_dict()
        expected = [math.nan if said[name][0] is None else float(said[name][0]) for name in served.user_features]
        np.testing.assert_array_equal(known.user, expected)
        for category, values in known.by_category.items():
            entity = {"user_id": key_of("user_id", n), "category": category}
            asked = [f"{CATEGORY_VIEW.name}:{name}" for name in served.category_features]
            said = store.get_online_features(features=asked, entity_rows=[entity]).to_dict()
            expected = [math.nan if said[f][0] is None else float(said[f][0]) for f in served.category_features]
            np.testing.assert_array_equal(values, expected)
    assert moved > 50
    assert with_rows > 80
    await reader.close()

    # The items of the file are those that Feast has online.
    columns = unpack_ranker(ranker.file(features)).item_columns
    rows = [{"item_id": key_of("item_id", n)} for n in range(ITEMS)]
    said = store.get_online_features(features=[f"{ITEM_VIEW.name}:{c}" for c in columns], entity_rows=rows).to_dict()
    values = np.array(unpack_ranker(ranker.file(features)).values).reshape(ITEMS, len(columns))
    for at, name in enumerate(columns):
        expected = np.array([math.nan if v is None else float(v) for v in said[name]]).astype(np.float32)
        np.testing.assert_array_equal(values[:, at], expected)
    assert np.isnan(values[45]).all()
