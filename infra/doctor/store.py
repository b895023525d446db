"""The object store of the lakehouse: there, ours to read and write, and with writes that never replace one another."""

from __future__ import annotations

import uuid

from feature_repo.contracts.errors import DependencyError
from infra.doctor.checks import Check, State, Subject

_SECONDS = 5


def examine_store(subject: Subject) -> Check:
    """Asks for the bucket, then puts one small object twice under the condition that there is none; removes it."""
    from spark_jobs.io.store_check import check_store

    environment = subject.environment
    store = environment.store
    assert store is not None
    needed = "a bucket that we may write, with conditional writes"
    try:
        check_store(environment)
    except DependencyError as error:
        text = str(error).removeprefix(f"the lakehouse {environment.lakehouse}: ")
        words, _, remedy = text.partition(": ")
        return Check("lakehouse", State.FAIL, f"{environment.lakehouse}: {words}", needed, remedy or "see the message")
    place = f"{environment.lakehouse} at {store.place}"
    try:
        problem, remedy = _write_problem(subject)
    except ImportError:
        return Check("lakehouse", State.WARN, f"{place}: writes not tried, boto3 is missing", needed, "make setup")
    if problem:
        return Check("lakehouse", State.FAIL, f"{place}: {problem}", needed, remedy)
    return Check("lakehouse", State.OK, f"{place}: written to, conditional writes hold", needed)


def _write_problem(subject: Subject) -> tuple[str, str]:
    """(what is wrong with writing, what helps); empty when all is well."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    environment = subject.environment
    store = environment.store
    assert store is not None
    style = "virtual" if store.virtual_hosts else "path"
    client = boto3.client(
        "s3", endpoint_url=store.endpoint or None, region_name=store.region or None,
        config=Config(
            connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1},
            s3={"addressing_style": style},
        ),
    )  # fmt: skip
    prefix = environment.lakehouse.removeprefix(f"s3a://{store.bucket}").strip("/")
    key = "/".join(filter(None, [prefix, f".nightjar-doctor-{uuid.uuid4().hex}"]))
    try:
        client.put_object(Bucket=store.bucket, Key=key, Body=b"1", IfNoneMatch="*")
    except (BotoCoreError, ClientError) as error:
        return f"cannot be written: {error}", "give our key the right to put objects there"
    try:
        client.put_object(Bucket=store.bucket, Key=key, Body=b"2", IfNoneMatch="*")
        return (
            "a conditional write replaced an object, so two writers could replace one another's commits",
            "a store that honours If-None-Match; versitygw does without --nometa",
        )
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (409, 412):
            return f"a conditional write was answered with {error}", "a store that honours If-None-Match"
    except BotoCoreError as error:
        return f"cannot be written: {error}", "see the message"
    finally:
        client.delete_object(Bucket=store.bucket, Key=key)
    return "", ""
