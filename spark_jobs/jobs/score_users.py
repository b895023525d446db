"""Refit the winner on everything before as_of, rank items for every active user, and publish the lists.

Reads    run.json, gate.json, evaluation.json; silver.interactions, silver.events, gold.item_ids; bronze.items and
         bronze.users with their changes (pinned); what it writes itself of the day before (pinned)
Writes   gold.candidates, gold.item_neighbours, gold.item_factors and gold.session_index (partition as_of),
         publication.json, placements.json (`placement_report`); when the run publishes also the bundle folder, and the
         packed rows and purchases of users in Redis `online`, under the keys of a version that nobody serves yet
Then     verify_publication reads everything back, flip_version makes it live.

Who is scored: every identified user ("u:" subjects) with at least one interaction. Who denies personalization gets an
empty list with a flag instead. What is left out of a list, by run param `exclude_seen`:
    interacted   (default) every item the user interacted with, as in the evaluation
    purchased    only items the user bought
    none         nothing

What is made anew, by run param `rescore`:
    touched      lists of people and neighbours of items that something happened to (`transforms.touched`); the others
                 are those of the night before. Factorizations begin from its item vectors
    all          everything, from nothing
    auto         (default) touched in a large shop, else all
Everything is made anew as well when the night before left no lists, or made them otherwise (another recipe, say); the
log and publication.json say which it was, why, and how many lists were scored and kept.

What lists tell, by run param `shares`:
    kept         (default) what each part of the model has of each item (`contracts.list_shares`)
    none         nothing: records are some 6 to 18 % smaller, and in the format of before

Killed at any point and run again it makes the same lists, the same version, the same bytes under the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy import sparse

from feature_repo.contracts.changes import ITEMS, USERS
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.publication import PURCHASES_PART, RANKER_FILE, Manifest
from feature_repo.contracts.purchase_record import Purchase
from feature_repo.contracts.run import EVALUATION_FILE, GATE_FILE, PUBLICATION_FILE, Run
from feature_repo.contracts.times import format_timestamp, from_micros
from spark_jobs.engine import is_cluster, on_executor
from spark_jobs.evaluation.session_choice import Choice, choose_session_recipe
from spark_jobs.evaluation.split import seen_policy
from spark_jobs.evaluation.with_ranker import WITH_RANKER, learn_ranker
from spark_jobs.io.bundle import file_hashes, write_bundle
from spark_jobs.io.catalogue import all_records, changes_position, in_run
from spark_jobs.io.entity_features import load_entity_features
from spark_jobs.io.interactions import known_numbers, read_interactions, read_numbers
from spark_jobs.io.item_content import load_content
from spark_jobs.io.item_vectors import Starts, read_starts, write_vectors
from spark_jobs.io.light_delta import read_table
from spark_jobs.io.light_tables import replace_day, replace_rows
from spark_jobs.io.night_before import day_before, differences, stored_neighbours, untouched_users
from spark_jobs.io.parcels import leave, parcels_of, take
from spark_jobs.io.publication import Publication, purchases_part
from spark_jobs.io.run_store import read_report, write_report
from spark_jobs.io.stored_lists import StoredLists
from spark_jobs.jobs import executor_work
from spark_jobs.jobs.asked_of_spark import on_executor_with_spark
from spark_jobs.jobs.entry import run_job
from spark_jobs.jobs.lists_by_executors import Lists, write_lists
from spark_jobs.jobs.placement_report import report_placements
from spark_jobs.jobs.resources import Clock
from spark_jobs.jobs.scored_shop import Beside, Shop
from spark_jobs.models.base import InteractionMatrix, Model
from spark_jobs.models.factory import fit
from spark_jobs.models.list_shares import keeps_shares
from spark_jobs.models.matrix import numbered_interactions
from spark_jobs.models.recipes import SEQUENCE_RECIPES, default_recipe, is_fitted_by_spark
from spark_jobs.models.threads import by_blocks, side_by_side
from spark_jobs.models.training_data import TrainingData
from spark_jobs.models.warm_start import item_vectors
from spark_jobs.session import get_session, runs_here
from spark_jobs.transforms.bought_together import baskets_of, together_rows
from spark_jobs.transforms.bundle_files import (
    bundle_files,
    eligible_items,
    items_json,
    popular_json,
)
from spark_jobs.transforms.candidates import (
    CANDIDATES_PER_USER,
    EXPLAINED_PER_USER,
    Scoring,
    denied_in,
    score_block,
    seen_items,
)
from spark_jobs.transforms.item_neighbours import NEIGHBOUR_RULES, Neighbours, item_neighbours, neighbour_table
from spark_jobs.transforms.purchases import purchases_of_users
from spark_jobs.transforms.session_index import (
    fit_session_index,
    session_index_bytes,
    session_index_table,
    session_sequences,
    sessions_of,
)
from spark_jobs.transforms.touched import (
    TOUCHED,
    Decision,
    Untouched,
    decide,
    history_digests,
    item_digests,
    made_by,
    rescore_asked,
)

CONSENT_COLUMNS = ["user_id", "event_timestamp", "consent_personalize"]
BUY_AGAIN = {**SEQUENCE_RECIPES["repurchase"]["params"], "due_power": 0.5}
"""Of what a user may buy again, and its order. The default recipe ignores the interval; a list of things to buy again
is about when, so here it counts, at the half of its power."""


def main(environment: Environment, run: Run) -> None:
    """Entry point of the process."""
    try:
        score_users(None if runs_here() else get_session("score_users"), environment, run)
    finally:
        if (spark := SparkSession.getActiveSession()) is not None:
            spark.stop()


def score_users(spark: SparkSession | None, environment: Environment, run: Run) -> dict[str, Any]:
    """The whole job; returns what publication.json says. The executors of a session score; without one the threads of
    this process do, and one is started only where a recipe is fitted by it or a placement's filter asks about items.
    On a cluster this process only plans and commits (`spark_jobs.engine`)."""
    recipe = recipe_of(environment, run)
    _asked(run)  # or a wrong word would be told in an hour
    if run.publishes:
        Publication(environment.redis_online_url, environment.tenant).served_version()  # fail now, not in an hour
    if spark is not None and is_cluster(spark):
        return score_on_cluster(spark, environment, run)
    session = cache(lambda: spark or get_session("score_users"))
    if is_fitted_by_spark(recipe):
        session()
    tell = Clock()
    shop = prepare(environment, run, recipe, tell)
    write_candidates(spark, environment, run, shop.scoring, shop.denied, shop.kept.keys)
    tell(shop.ranked())
    reach = report_placements(session, environment, run, shop.numbers, shop.eligible)
    tell(f"{len(reach['placements'])} placements have a filter, {len(reach['warnings'])} warnings")
    return publish_all(environment, run, make_beside(environment, run, shop, tell), tell)


def score_on_cluster(spark: SparkSession, environment: Environment, run: Run) -> dict[str, Any]:
    """`score_users` whose driver has nothing in its hands that grows with people: one task reads, fits and writes what
    stands beside the lists, many rank and write the lists, and one publishes them."""
    tell = Clock()
    with parcels_of(environment, run):
        prepare_lists = partial(executor_work.prepare_lists, environment, run)
        prepared = on_executor_with_spark(spark, environment, run, prepare_lists)
        write_lists(spark, environment, run, prepared.lists, prepared.block_count)
        tell(prepared.ranked)
        reach = report_placements(lambda: spark, environment, run, *take(prepared.items))
        tell(f"{len(reach['placements'])} placements have a filter, {len(reach['warnings'])} warnings")
        return on_executor(spark, partial(executor_work.publish_lists, environment, run, prepared.beside))


def recipe_of(environment: Environment, run: Run) -> dict[str, Any]:
    """The recipe that the gate lets through. Raises DataError when it lets none."""
    recipe = read_report(environment, run.run_key, GATE_FILE).get("recipe")
    if not recipe:
        raise DataError(f"{GATE_FILE} of run {run.run_key!r} lets no recipe through: there is nothing to publish")
    return dict(recipe)


def _asked(run: Run) -> tuple[str, str, bool]:
    """(what is left out of lists, what is made anew, whether lists tell shares). Raises DataError on a wrong word."""
    return seen_policy(run.params), rescore_asked(run.params), keeps_shares(run.params)


def prepare(environment: Environment, run: Run, recipe: Mapping[str, Any], tell: Callable[[str], None]) -> Shop:
    """Read, decide what is made anew, and fit."""
    policy, rescore, shares = _asked(run)
    every_number = read_numbers(environment)
    known = read_interactions(environment, every_number, cut_off=run.cut_off)
    interactions, numbers = numbered_interactions(known), known_numbers(every_number, known, run.as_of_day)
    item_count = max(numbers["item_number"].to_pylist(), default=-1) + 1
    if interactions.num_rows == 0:
        raise DataError(f"silver.interactions has nothing before {run.as_of}: there is nobody to score")
    content = load_content(environment, run.pins, numbers, item_count=item_count)
    features = partial(load_entity_features, environment, numbers, item_count, run)
    data = TrainingData(interactions, item_count=item_count, cut_off=run.cut_off, content=content, features=features)
    histories = history_digests(interactions)
    rules = f"exclude_seen {policy}, {CANDIDATES_PER_USER} long, {EXPLAINED_PER_USER} explained"
    rules += ", with shares" if shares else ""
    made = made_by(recipe, rules, every_number, item_count=item_count)
    decision = decide(
        rescore,
        differences(environment, run, made, every_number),
        day=day_before(run),
        people=int(np.char.startswith(histories.keys, "u:").sum()),
    )
    keeps = decision.rescore == TOUCHED
    tell(f"rescores {decision.rescore}: {decision.why}")

    starts = read_starts(environment, run, item_count=item_count) if keeps else Starts({}, {})
    model, matrix = fit(recipe, data, starts=starts.vectors)
    learned = item_vectors(model, recipe)
    warm = sorted(learned.keys() & starts.vectors.keys())
    tell(
        f"refitted {recipe['model']} on {interactions.num_rows:,} interactions of {len(matrix.subjects):,} subjects"
        + (f", {len(warm)} of {len(learned)} factorizations from yesterday's vectors" if keeps else "")
    )

    users = all_records(environment, USERS, in_run(run.pins))
    catalogue = all_records(environment, ITEMS, in_run(run.pins), cut_off=run.cut_off)
    items = catalogue.join(numbers, keys="item_id", join_type="inner")
    eligible = eligible_items(items, item_count=item_count, cut_off=run.cut_off)
    said = read_table(environment, "silver.events", None, CONSENT_COLUMNS, pc.is_valid(pc.field(CONSENT_COLUMNS[-1])))
    denied = denied_in(users, said, cut_off=run.cut_off)
    del said
    scoring = _scoring(model, matrix, seen_items(matrix, interactions, policy, run.cut_off), eligible, denied, run)
    digests = histories.of(_subjects(scoring.user_ids))
    scoring = replace(scoring, made_by=made.to_json(), digests=digests, shares=shares)
    kept = untouched_users(environment, run, scoring) if keeps else Untouched(scoring.user_ids[:0], {})
    return Shop(
        recipe=recipe, policy=policy, decision=decision, known=known, data=data, every_number=every_number,
        numbers=numbers, users=users, items=items, eligible=eligible, denied=denied,
        scoring=scoring.without(kept.keys), kept=kept, learned=learned, starts=starts,
    )  # fmt: skip


def make_beside(environment: Environment, run: Run, shop: Shop, tell: Callable[[str], None]) -> Beside:
    """Write the tables beside gold.candidates, and make the bundle where the run publishes."""
    data, eligible, kept = shop.data, shop.eligible, shop.kept
    near, (session_index, choice) = side_by_side(
        partial(write_neighbours, environment, run, data, eligible, shop.every_number, shop.decision),
        partial(build_session_index, environment, run, shop.known, eligible),
    )
    write_vectors(environment, run, shop.learned, shop.starts)
    neighbours = near.rows
    tell(
        f"{sum(map(len, neighbours)):,} neighbours of {sum(map(bool, neighbours)):,} items, {near.kept:,} rows kept; "
        f"session index of {len(session_index):,} bytes: {choice.manner}, asked {choice.questions:,} of the newest"
    )

    rescored = {
        "rescore": shop.decision.rescore, "why": shop.decision.why,
        "users": {
            "scored": len(shop.scoring.rows), "kept": len(kept.keys), "denied": len(shop.denied),
            "touched": dict(kept.touched),
        },
        "items": {"scored": len(eligible) - near.kept, "kept": near.kept, "touched": dict(near.touched)},
        "warm_starts": shop.warm,
    }  # fmt: skip
    published_recipe = {**shop.recipe, "exclude_seen": shop.policy, "candidates_per_user": CANDIDATES_PER_USER}
    last_event_at = format_timestamp(from_micros(pc.max(data.interactions["micros"]).as_py()))
    if not run.publishes:
        return Beside(None, [], published_recipe, shop.items.num_rows, last_event_at, {}, rescored)
    popularity = default_recipe("popularity")
    regions = _regions(shop.users)
    popular = popular_json(data.matrix(popularity), popularity["params"], shop.items, eligible, regions)
    together = together_rows(baskets_of(shop.known), eligible)
    tell(f"{sum(map(len, together)):,} items bought with {sum(map(bool, together)):,} others")
    files = bundle_files(items_json(shop.items), neighbours, popular, session_index, together)
    ranker, ranker_words = answer_ranker(environment, run, shop.recipe, data, shop.known, shop.policy)
    if ranker is not None:
        files[RANKER_FILE] = ranker
    tell(f"ranker of answers: {ranker_words}")
    bought = purchases_of_users(data.interactions, BUY_AGAIN, eligible, denied=shop.denied, cut_off=run.cut_off)
    report = {
        "session_model": {**choice.recipe, "manner": choice.manner, "reached": choice.reached},
        "ranker": {"published": ranker is not None, "words": ranker_words},
    }
    return Beside(files, list(bought), published_recipe, shop.items.num_rows, last_event_at, report, rescored)


def publish_all(environment: Environment, run: Run, beside: Beside, tell: Callable[[str], None]) -> dict[str, Any]:
    """Publish the lists and what stands beside them, where the run does; returns what publication.json says."""
    if beside.files is None:
        print(f"not publishing: {run.why}", flush=True)
        report: dict[str, Any] = {"published": False, "version": None, "why": run.why}
    else:
        report = publish(
            environment, run, beside.files, beside.purchases,
            recipe=beside.recipe, item_count=beside.item_count, last_event_at=beside.last_event_at,
        )  # fmt: skip
        tell(f"published {report['version']}: {report['user_count']:,} users, {report['row_count']:,} rows")
    report |= {**beside.report, "rescore": beside.rescored}
    write_report(environment, run.run_key, PUBLICATION_FILE, report)
    return report


def write_candidates(
    spark: SparkSession | None,
    environment: Environment,
    run: Run,
    scoring: Scoring,
    denied: list[str],
    kept: NDArray[np.str_] | None = None,
) -> None:
    """Score by blocks into gold.candidates, beside the lists of the night before that are `kept`.

    The executors of `spark` score them and write them themselves (`lists_by_executors`), or threads of this process do
    (None), as they come: as rows of Spark they would be made, brought together and written element by element. Both
    ways give the same rows.
    """
    lists = Lists(environment, run, scoring, denied, np.empty(0, np.str_) if kept is None else kept)
    if spark is None:
        scored = by_blocks(partial(score_block, scoring), range(scoring.block_count))
        replace_day(environment, "gold.candidates", chain(scored, lists.unscored()), run.as_of_day)
    else:
        with parcels_of(environment, run):
            write_lists(spark, environment, run, leave(environment, run, lists), scoring.block_count)


def write_neighbours(
    environment: Environment,
    run: Run,
    data: TrainingData,
    eligible: NDArray[np.bool_],
    every_number: pa.Table,
    decision: Decision,
) -> Neighbours:
    """gold.item_neighbours of this as_of; returns the neighbours."""
    recipe = default_recipe("item_knn")
    made = made_by(recipe, NEIGHBOUR_RULES, every_number, item_count=len(eligible))
    keeps = decision.rescore == TOUCHED
    stored = stored_neighbours(environment, run if keeps else replace(run, pins={}), made, every_number)
    digests = item_digests(data.interactions)
    found = item_neighbours(recipe["params"], data.matrix(recipe), eligible, digests, stored, as_of=run.as_of_day)
    table = neighbour_table(found, digests, made_by=made.to_json(), as_of=run.as_of_day)
    replace_rows(environment, "gold.item_neighbours", table, run.as_of_day)
    return found


def build_session_index(
    environment: Environment,
    run: Run,
    interactions: pa.Table,
    eligible: NDArray[np.bool_],
) -> tuple[bytes, Choice]:
    """gold.session_index of this as_of; returns the same as the bytes of its file, and the recipe that was chosen."""
    sequences = session_sequences(sessions_of(interactions), item_count=len(eligible), cut_off=run.cut_off)
    choice = choose_session_recipe(sequences)
    lists = fit_session_index(choice.recipe, sequences, eligible)
    replace_rows(environment, "gold.session_index", session_index_table(lists, run.as_of_day), run.as_of_day)
    return session_index_bytes(choice.recipe, lists, session_count=len(sequences)), choice


def answer_ranker(
    environment: Environment, run: Run, recipe: Mapping[str, Any], data: TrainingData, known: pa.Table, policy: str
) -> tuple[bytes | None, str]:
    """(`ranker.bin` where the gate lets a ranker be published, learned from the last days before as_of; why, or why
    not)."""
    gate = read_report(environment, run.run_key, GATE_FILE)
    said = gate.get("ranker") or {"publishes": False, "words": "the gate says nothing of one"}
    if not said["publishes"]:
        return None, said["words"]
    trained = read_report(environment, run.run_key, EVALUATION_FILE)["models"][WITH_RANKER]["recipe"]["params"]
    by_category = bool(trained["by_category"])
    try:
        ranker = learn_ranker(recipe, data, known, by_category=by_category, policy=policy)
        now = data.features_at(run.cut_off, by_category=by_category)
    except DataError as error:
        return None, str(error)
    return ranker.file(now), f"{said['words']}; learned from {ranker.learned['people']:,} people"


def publish(
    environment: Environment,
    run: Run,
    files: Mapping[str, bytes],
    purchases: Sequence[tuple[str, list[Purchase]]],
    *,
    recipe: Mapping[str, Any],
    item_count: int,
    last_event_at: str,
) -> dict[str, Any]:
    """Digest the lists in gold.candidates, name the version after the manifest, then bundle, manifest and lists.
    Nothing becomes live."""
    lists = StoredLists(environment, run.as_of_day)
    digested = lists.digest()
    manifest = Manifest(
        as_of=run.as_of,
        model=recipe["model"],
        recipe=recipe,
        user_count=digested.user_count,
        item_count=item_count,
        candidates_checksum=digested.checksum,
        last_event_at=last_event_at,
        files=file_hashes(files),
        parts={PURCHASES_PART: purchases_part(purchases, BUY_AGAIN)},
        volatile={
            "run_key": run.run_key,
            "item_changes_position": changes_position(environment, run.pins),
            "mlflow_run_id": run.mlflow_run_id,
            "code_version": run.code_version,
            "published_at": format_timestamp(datetime.now(UTC).replace(microsecond=0)),
        },
    )
    publication = Publication(environment.redis_online_url, environment.tenant)
    served_before = publication.served_version()
    version = publication.announce(manifest)
    folder = write_bundle(environment.publications, manifest, files, tenant=environment.tenant)
    try:
        lists.put(publication, version)
    except DependencyError as error:
        raise DependencyError(f"version {version} is published in part only, and nothing serves it: {error}") from error
    publication.put_purchases(version, purchases)
    return {
        "published": True,
        "version": version,
        "served_before": served_before,
        "why": run.why,
        "as_of": run.as_of,
        "model": manifest.model,
        "user_count": manifest.user_count,
        "row_count": digested.row_count,
        "buyer_count": len(purchases),
        "item_count": item_count,
        "candidates_checksum": manifest.candidates_checksum,
        "last_event_at": last_event_at,
        "files": dict(manifest.files),
        "bundle": str(folder),
    }


def _scoring(
    model: Model,
    matrix: InteractionMatrix,
    seen: sparse.csr_matrix,
    eligible: Any,
    denied: list[str],
    run: Run,
) -> Scoring:
    rows = np.flatnonzero(np.char.startswith(matrix.subjects, "u:")) if len(matrix.subjects) else np.empty(0, np.int64)
    user_ids = np.array([subject[2:] for subject in matrix.subjects[rows].tolist()], dtype=np.str_)
    allowed = ~np.isin(user_ids, np.array(denied, dtype=np.str_))
    return Scoring(
        model=model, user_ids=user_ids[allowed], rows=rows[allowed], histories=matrix.preference, seen=seen,
        eligible=eligible, as_of=run.as_of_day,
    )  # fmt: skip


def _subjects(user_ids: NDArray[np.str_]) -> NDArray[np.str_]:
    return np.char.add("u:", user_ids) if len(user_ids) else user_ids


def _regions(users: pa.Table) -> dict[str, str]:
    """Subject key -> region, of the users that have one."""
    found = users.filter(pc.is_valid(users["region"])).select(["user_id", "region"])
    return {f"u:{user}": region for user, region in zip(*(c.to_pylist() for c in found.columns), strict=True)}


if __name__ == "__main__":
    run_job(main)
