"""Tables on an S3-like store: where they lie, what each engine must be told, and its errors in words.

NIGHTJAR_LAKEHOUSE names the place, `s3a://bucket/prefix`; the usual AWS variables say how to reach it. Keys are never
read here: both engines take them from the process's environment, or from the role of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from feature_repo.contracts.errors import DataError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
VIRTUAL_HOSTS = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"
STORE_VARIABLES = (*ENDPOINTS, *REGIONS, VIRTUAL_HOSTS)
"""What says where a store is, and no secret: it may be written down. The first of several that is set counts."""

USUAL_REGION = "us-east-1"
"""What stores beside AWS call theirs."""

_LOCATION = re.compile(r"s3a?://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[^/?#\s]+)*)/*")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ASKED = re.compile(r"https?://[^/\s?]+")

_NO_KEYS = ("169.254.169.254", "AccessKeyId", "SecretAccessKey", "Unable to load credentials", "CredentialsNotLoaded")
_NO_ANSWER = ("error sending request", "Connection refused", "dns error", "timed out", "UnknownHost")
_UNKNOWN_KEY = ("InvalidAccessKeyId", "XAdminUserNotFound", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")


def is_on_store(path: str) -> bool:
    """Whether a lakehouse or a table's path is a URL; else it is a folder."""
    return "://" in path


def lakehouse_location(value: str) -> str:
    """A folder as it is; `s3://` and `s3a://` as `s3a://bucket/prefix`, which both engines understand.

    Raises DataError on any other URL.
    """
    if not is_on_store(value):
        return value
    found = _LOCATION.fullmatch(value)
    if found is None:
        raise DataError(
            f"NIGHTJAR_LAKEHOUSE is a folder, or s3a://bucket/prefix with a bucket of 3 to 63 lower-case characters; "
            f"got {value!r}",
            field="NIGHTJAR_LAKEHOUSE",
        )
    return f"s3a://{found[1]}{found[2]}"


class ObjectStore(NamedTuple):
    """How to reach the store.

    endpoint       its URL; empty: AWS itself
    region         empty: whatever the engines find (AWS only)
    virtual_hosts  the bucket is part of the host name, not of the path
    """

    bucket: str
    endpoint: str
    region: str
    virtual_hosts: bool

    @classmethod
    def of(cls, lakehouse: str, variables: Mapping[str, str]) -> ObjectStore | None:
        """The store of a lakehouse; None for a folder. Raises DataError on an endpoint that is no http URL."""
        if not is_on_store(lakehouse):
            return None
        name, endpoint = _first(variables, ENDPOINTS)
        url = urlsplit(endpoint)
        if endpoint and (url.scheme not in ("http", "https") or not url.hostname):
            raise DataError(f"{name} is http://host:port or https://host, got {endpoint!r}", field=name)
        region = _first(variables, REGIONS)[1] or (USUAL_REGION if endpoint else "")
        virtual_hosts = variables.get(VIRTUAL_HOSTS, "" if endpoint else "true").lower() == "true"
        return cls(urlsplit(lakehouse).netloc, endpoint.rstrip("/"), region, virtual_hosts)

    @property
    def place(self) -> str:
        """For people."""
        return self.endpoint or "AWS"

    def light_options(self) -> dict[str, str]:
        """`storage_options` of the light engine. A commit is a conditional put: it never replaces another one."""
        options = {"AWS_CONDITIONAL_PUT": "etag", VIRTUAL_HOSTS: str(self.virtual_hosts).lower()}
        if self.endpoint:
            scheme, _, host = self.endpoint.partition("://")
            options["AWS_ENDPOINT_URL"] = f"{scheme}://{self.bucket}.{host}" if self.virtual_hosts else self.endpoint
            options["AWS_ALLOW_HTTP"] = str(self.endpoint.startswith("http://")).lower()
        if self.region:
            options["AWS_REGION"] = self.region
        return options

    def spark_settings(self) -> dict[str, str]:
        """Lines of spark-defaults.conf. Delta's log store knows of one driver: others are kept out by a lock."""
        settings = {
            "spark.delta.logStore.s3a.impl": "io.delta.storage.S3SingleDriverLogStore",
            "spark.hadoop.fs.s3a.aws.credentials.provider":
                "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider",
            "spark.hadoop.fs.s3a.path.style.access": str(not self.virtual_hosts).lower(),
            "spark.hadoop.fs.s3a.input.stream.type": "classic",
        }  # fmt: skip
        if self.endpoint:
            settings["spark.hadoop.fs.s3a.endpoint"] = self.endpoint
        if self.region:
            settings["spark.hadoop.fs.s3a.endpoint.region"] = self.region
        return settings


def store_problem(path: str, error: BaseException) -> str:
    """What an engine's error about a table at `path` means, and what helps; of a folder, the error's own text."""
    text = _COLOURS.sub("", str(error))
    if not is_on_store(path):
        return text
    bucket = urlsplit(path).netloc
    asked, code = _ASKED.search(text), _CODE.search(text)
    where = asked[0] if asked else "the store"
    told = code[1] if code else ""
    if told == "NoSuchBucket":
        return f"the bucket {bucket} does not exist at {where}: create it, or correct NIGHTJAR_LAKEHOUSE ({path})"
    if told in _UNKNOWN_KEY:
        return f"{where} does not know our key ({told}): correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if told == "AuthorizationHeaderMalformed":
        return f"{where} is in another region: set AWS_REGION to that of the bucket {bucket}"
    if told == "AccessDenied" or ("403 Forbidden" in text and not told and "169.254.169.254" not in text):
        return f"{where} refused us the bucket {bucket}: its key needs the rights to list, read, write and delete there"
    if any(sign in text for sign in _NO_KEYS):
        return (
            f"no credentials for the bucket {bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give a role"
        )
    if any(sign in text for sign in _NO_ANSWER):
        return f"{where} does not answer: start the store, or correct AWS_ENDPOINT_URL"
    return " ".join(text.split())


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """(name, value) of the first that is set to something; ("", "") when none is."""
    return next(((name, variables[name]) for name in names if variables.get(name)), ("", ""))
