"""Every task of every DAG has a test that runs it twice and finds what once leaves. This one holds the list to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.dags.test_every_dag import TASKS_OF

ROOT = Path(__file__).parents[2]

RUN_TWICE = {
    "nightly_recommendations": {
        "pin_run": "tests/unit/test_pin_run.py::test_a_retry_keeps_what_was_pinned",
        "refine_events": "tests/spark/test_refine_events.py::test_nothing_new_writes_nothing",
        "build_features": "tests/spark/test_features.py::test_the_job_builds_gold_and_builds_the_same_again",
        "train_models": "tests/spark/test_train_models.py::test_a_retry_makes_the_same",
        "judge_models": "tests/spark/test_train_models.py::test_a_night_from_events_to_a_challenger",
        "score_users": "tests/spark/test_score_users.py::test_run_again_after_a_kill_gives_the_same_version_and_bytes",
        "materialize_features": "tests/parity/test_feast_features.py::test_a_night_that_runs_again_replaces_its_values",
        "verify_publication": "tests/unit/test_publication_jobs.py::test_verifying_and_flipping_twice_is_once",
        "flip_version": "tests/unit/test_publication_jobs.py::test_verifying_and_flipping_twice_is_once",
        "attribute_events": "tests/unit/test_attribute_events.py::test_twice_is_once_and_late_events_arrive",
    },
    "sync_catalogue": {
        "sync_inbox": "tests/unit/test_import_inbox.py::test_files_come_in_once_users_first_and_the_result_stays",
    },
    "maintain_tables": {
        "maintain_tables": "tests/spark/test_maintain_tables.py::test_small_files_become_one_and_what_was_pinned_stays",
        "maintain_imports": "tests/unit/test_table_upkeep.py::"
        "test_crowded_days_become_one_file_and_the_second_time_nothing_happens",
        "maintain_archive": "tests/unit/test_table_upkeep.py::test_the_archiver_maintains_its_tables_when_asked",
    },
    "rollback_recommendations": {
        "rollback_version": "tests/unit/test_publication_cli.py::test_a_rollback_task_that_runs_again_does_not_return",
    },
    "promote": {
        "promote_version": "tests/unit/test_promote.py::test_a_warm_version_is_served_again_and_is_the_champion",
    },
    "rederive_features": {
        "rederive_features": "tests/spark/test_rederive.py::test_past_days_are_a_nights_days_and_twice_is_once",
    },
}


def test_no_task_is_without_one() -> None:
    assert {dag_id: set(tests) for dag_id, tests in RUN_TWICE.items()} == TASKS_OF


@pytest.mark.parametrize("test", sorted({test for tests in RUN_TWICE.values() for test in tests.values()}))
def test_the_test_is_there(test: str) -> None:
    file, name = test.split("::")
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in [function.name for function in functions]
