"""Requests to other hosts: the name that they carry, and the certificates that they trust."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import requests

from backend.punctual import PunctualAdapter
from skipclick import __version__

USER_AGENT = f"skipclick-backend/{__version__}"
"""Some hosts refuse the names of libraries, and an administrator wants to know who asks."""

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Where certificates of authorities are named, the first one that is set counts. requests reads the first two by
itself, and no others."""


def new_session(adapter: PunctualAdapter) -> requests.Session:
    """A session for requests to other hosts, which end when the adapter's deadline does. All of this server's go
    through one: whoever answers drip by drip keeps nobody waiting."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    session.headers["User-Agent"] = USER_AGENT
    openssl = (os.environ.get(name) for name in CA_VARIABLES[2:])
    session.verify = next((path for path in openssl if path and Path(path).exists()), True)
    return session


def trusted_certificates(environment: Mapping[str, str]) -> tuple[str, Path] | None:
    """The variable that names the trusted certificates, and the file or folder; None for those of certifi."""
    return next(((name, Path(environment[name])) for name in CA_VARIABLES if environment.get(name)), None)


def connection_advice(error: Exception) -> str:
    """What to do about an error of `requests`, where its kind says; else empty."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "check the proxy that HTTP_PROXY or HTTPS_PROXY names, or list this host in NO_PROXY"
    if isinstance(error, requests.exceptions.SSLError):
        return (
            "the host's certificate is not trusted here; if an authority of your own has signed it, set "
            "REQUESTS_CA_BUNDLE to the file with that authority's certificate"
        )
    if isinstance(error, OSError) and "CA certificate bundle" in str(error):
        return f"the file that {' or '.join(CA_VARIABLES[:2])} names does not exist"
    return ""
