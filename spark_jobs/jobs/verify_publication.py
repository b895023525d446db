"""Read back everything that score_users published and compare it with the manifest and with gold.candidates.

Reads    publication.json; gold.candidates (lists of this as_of); every record of the version in Redis `online`;
         the files of the bundle
Writes   the version's verified mark: set when all is well, taken away when something differs

Beside that it asks of the lists what no model may break: only items of the bundle that are shown at as_of, none twice,
scores of usual size (`transforms.list_checks`); and a ranker that answers can read, if there is one.

A difference is a ContractError (exit 1): the store lost or changed something after it was written. Clear score_users in
Airflow and the night publishes the same version again, over what is there; the served version is not touched.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.publication import ITEMS_FILE, RANKER_FILE
from feature_repo.contracts.ranker_file import unpack_ranker
from feature_repo.contracts.run import PUBLICATION_FILE, Run
from spark_jobs.io.bundle import bundle_folder, check_bundle
from spark_jobs.io.light_delta import read_table
from spark_jobs.io.publication import Publication
from spark_jobs.io.run_store import read_report
from spark_jobs.jobs.entry import run_job
from spark_jobs.transforms.list_checks import list_faults


def main(environment: Environment, run: Run) -> None:
    """Raises ContractError listing every kind of difference with its count."""
    if not run.publishes:
        print(f"nothing to verify: {run.why}", flush=True)
        return
    version = read_report(environment, run.run_key, PUBLICATION_FILE)["version"]
    publication = Publication(environment.redis_online_url, environment.tenant)
    manifest = publication.manifest(version)
    columns = ["user_id", "item_numbers", "scores"]
    scored = read_table(environment, "gold.candidates", columns=columns, filters=[("as_of", "=", run.as_of_day)])
    found = publication.verify(version, scored["user_id"].to_pylist())
    differences = list(found.differences)
    if scored.num_rows != manifest.user_count:
        differences.append(f"gold.candidates: {scored.num_rows:,} users, the manifest says {manifest.user_count:,}")
    folder = bundle_folder(environment.publications, version, tenant=environment.tenant)
    broken = check_bundle(folder, manifest)
    differences += broken
    if not broken:
        items = json.loads((folder / ITEMS_FILE).read_bytes())
        differences += list_faults(scored, items, cut_off=run.cut_off)
        differences += ranker_faults(folder / RANKER_FILE) if RANKER_FILE in manifest.files else []
    if differences:
        publication.mark_verified(version, at=None)
        raise ContractError(
            f"version {version} is not what was published: {'; '.join(differences)}. "
            "Clear score_users to publish it again; what is served now stays"
        )
    publication.mark_verified(version, at=datetime.now(UTC).replace(microsecond=0))
    print(f"{version} is whole: {found.record_count:,} users, {found.row_count:,} rows, {found.checksum}", flush=True)


def ranker_faults(path: Path) -> list[str]:
    """Why answers could not use the ranker of a version; empty when they can."""
    try:
        unpack_ranker(path.read_bytes())
    except ContractError as error:
        return [str(error)]
    return []


if __name__ == "__main__":
    run_job(main)
