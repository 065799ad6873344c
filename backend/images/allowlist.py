"""Which hosts this server calls for images: names on a list, and addresses that are safe to call.

Anyone who can create a task chooses an address that this server then calls, from inside its network. So a host other
than Label Studio needs a name on the list `IMAGE_HOSTS` and a publicly reachable address. The name is resolved once,
and the connection goes to exactly the address that was checked: a name that resolves to another host a moment later
gains nothing (DNS rebinding).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection

from backend.http_client import DeadlineAdapter
from backend.settings import BUCKETS, host_matches

Standing = Literal["public", "private", "unusable"]
"""Kind of an address: public, private (loopback included), or one that never serves images, such as those from which
clouds hand out credentials."""

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")

_CLOUD_SERVICES = tuple(
    ip_network(network)
    for network in (
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure; a public address
        "192.0.0.192/32",  # Oracle Cloud, the older one
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::/32",  # Google Cloud
        "fd00:c1::/32",  # Oracle Cloud
        "fd00:42::42/128",  # Scaleway
        "fd00:a9fe:a9fe::/48",  # Linode
        "64:ff9b:1::/48",  # where a network translates to IPv4 addresses, perhaps to these
    )
)
"""Metadata services, which hand out a machine's credentials, besides the link-local addresses that most clouds use."""


class RefusedHostError(ValueError):
    """This host may not be called; the message names the setting that forbids it."""


@dataclass(frozen=True)
class ImageHosts:
    """The hosts besides Label Studio that images come from.

    `patterns` are host names, `*.example.org` for all subdomains, or `*`; any other asterisk matches a part without
    dots. `allow_private` is for trusted networks: it admits loopback and private addresses too.
    """

    patterns: tuple[str, ...] = BUCKETS
    allow_private: bool = False

    def check_name(self, host: str) -> None:
        """Raise `RefusedHostError` for a host that is not on the list."""
        if not any(host_matches(host.lower().rstrip("."), pattern.lower()) for pattern in self.patterns):
            raise RefusedHostError(
                f"{host[:100]} is not among the hosts that this server fetches images from; to allow it, start the "
                f"server with IMAGE_HOSTS={','.join((*self.patterns, host[:100]))}"
            )

    def lists(self, host: str) -> bool:
        """Whether the list names this host, so that no other may be called in its place. `*` does not name this
        machine."""
        here = host == "localhost" or host.endswith(".localhost") or _is_loopback(host)
        name = host.lower().rstrip(".")
        return any(host_matches(name, pattern.lower()) for pattern in self.patterns if pattern != "*" or not here)

    def resolve(self, host: str, port: int) -> list[str]:
        """The host's addresses, if all of them may be called. Raises `RefusedHostError`, or `OSError` for an unknown
        name."""
        self.check_name(host)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        standings = {standing(address) for address in addresses}
        if "unusable" in standings:
            raise RefusedHostError(
                f"{host[:100]} has an address that never serves images (link-local, reserved, or a cloud's "
                "own services)"
            )
        if "private" in standings and not self.allow_private:
            raise RefusedHostError(
                f"{host[:100]} has a private address; if this server may fetch images from its own network, start it "
                "with ALLOW_PRIVATE_ADDRESSES=true"
            )
        return addresses

    def adapter(self, deadline: float) -> DeadlineAdapter:
        """An adapter that connects to these hosts only, until the monotonic time `deadline`. Its requests raise
        `RefusedHostError` too."""
        return _CheckingAdapter(self, deadline)


def standing(text: str) -> Standing:
    """What kind of address a text such as `10.0.0.1` or `fe80::1%eth0` is."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        carried = _carried(address)
        if carried is not None:
            return standing(str(carried))
    if address.is_loopback:
        return "private"
    if any(address in network for network in _CLOUD_SERVICES):
        return "unusable"
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return "unusable"
    is_public = address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST)
    return "public" if is_public else "private"


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address embeds, to which its packets finally go; None if there is none."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _CheckedConnection(HTTPConnection):
    """Connects to an address that was checked. TLS and the Host header still use the name."""

    def __init__(self, *args: Any, hosts: ImageHosts, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hosts = hosts

    def _new_conn(self) -> socket.socket:
        try:
            addresses = self._hosts.resolve(self.host, self.port)
            return _first_connection(addresses, self)
        except TimeoutError:
            raise ConnectTimeoutError(self, f"no connection to {self.host} within {self.timeout} s") from None
        except OSError as error:
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error


class _CheckedTlsConnection(_CheckedConnection, HTTPSConnection):
    """The same under TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _CheckedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedTlsConnection


class _CheckingAdapter(DeadlineAdapter):
    """Makes requests through checked connections."""

    def __init__(self, hosts: ImageHosts, deadline: float) -> None:
        self._hosts = hosts
        super().__init__(deadline)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {
            "http": partial(_Pool, hosts=self._hosts),
            "https": partial(_TlsPool, hosts=self._hosts),
        }

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        if select_proxy(request.url or "", options.get("proxies")):
            self._check_before_proxy(request.url or "")
        return super().send(request, *args, **options)

    def _check_before_proxy(self, url: str) -> None:
        """A proxy makes the connection, so only what the name resolves to here and now can be checked."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        self._hosts.check_name(host)
        if self._hosts.allow_private:
            return
        try:
            self._hosts.resolve(host, parts.port or 0)
        except OSError:
            raise RefusedHostError(
                f"{host[:100]} cannot be resolved here, so it is unknown where a proxy would connect to; if the "
                "proxy is to be trusted with that, start this server with ALLOW_PRIVATE_ADDRESSES=true"
            ) from None


def _first_connection(addresses: list[str], connection: HTTPConnection) -> socket.socket:
    """A socket to the first address that answers; all of them share the connection's time limit."""
    limit = connection.timeout if isinstance(connection.timeout, (int, float)) else None
    begin = time.monotonic()
    last_error: OSError = OSError("the name has no addresses")
    for address in addresses:
        left = None if limit is None else begin + limit - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        try:
            return create_connection((address, connection.port), left, socket_options=connection.socket_options)
        except OSError as error:
            last_error = error
    raise last_error
