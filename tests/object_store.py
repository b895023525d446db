"""An S3-like store for tests: moto's server, or a real one that NIGHTJAR_TEST_STORE names."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import boto3

STORE_TO_USE = "NIGHTJAR_TEST_STORE"
"""A URL; its keys are then the usual AWS variables."""

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""In a process of its own: the light engine keeps the interpreter to itself while it waits for an answer."""


class TestStore(NamedTuple):
    """A store with one empty bucket. `variables`: what a process needs to find it, keys included."""

    __test__ = False

    bucket: str
    endpoint: str
    variables: dict[str, str]

    def keys(self, prefix: str = "") -> list[str]:
        """Names of the objects below `prefix`, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(each["Key"] for page in pages for each in page.get("Contents", ()))

    def client(self):
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name=self.variables["AWS_REGION"],
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip


@contextmanager
def test_store() -> Iterator[TestStore]:
    """The store, with a bucket of a name of its own; moto's is gone afterwards."""
    given = os.environ.get(STORE_TO_USE)
    if given:
        yield _with_bucket(given, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        return
    server = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield _with_bucket(f"http://127.0.0.1:{port}", "tester", "secret")
    finally:
        server.kill()
        server.communicate()


test_store.__test__ = False  # type: ignore[attr-defined]


def _with_bucket(endpoint: str, key: str, secret: str) -> TestStore:
    variables = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret, "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    store = TestStore(f"nightjar-{uuid.uuid4().hex[:12]}", endpoint, variables)
    store.client().create_bucket(Bucket=store.bucket)
    return store
