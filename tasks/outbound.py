"""Requests to addresses that a client has named: only to public ones, and with bounds on all they may cost.

The name is resolved once, every address that it has must be allowed, and the connection goes to one of these
very addresses, so that a name that changes in between leads nowhere else. Proxies of the environment and
redirects are not followed by httpx; a redirect is judged here like a first request.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
import httpx
from django.conf import settings

from capataz.errors import Discard

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
PORTS = {"http": 80, "https": 443}
LONGEST_URL = 2048
MOST_REDIRECTS = 3
# These are the client library's own, or change where one message ends and the next begins.
FORBIDDEN_HEADERS = frozenset(
    [
        "host",
        "connection",
        "transfer-encoding",
        "content-length",
        "accept-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "proxy-authorization",
        "proxy-connection",
    ]
)
# What follows a redirect to another origin; any other header may be a credential.
HARMLESS = frozenset({"accept", "accept-language", "content-type", "user-agent"})

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Everything that is not the public internet. Not is_global: it lets multicast, NAT64 and 6to4 through.
_NETWORKS = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    # Of IPv6 only 2000::/3 is handed out; the rest holds loopback, mapped and compatible IPv4, NAT64,
    # unique local, link-local and multicast addresses.
    "::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32",
    "2002::/16", "3fff::/20", "5f00::/16",
)  # fmt: skip
_DENIED = [ip_network(text) for text in _NETWORKS]


class Refused(Discard, ValueError):
    """An address or header that no request is made with, however often it is tried."""


class Unavailable(Exception):
    """The other side could not be reached or did not answer well. The message quotes nothing of what was
    sent or came back. ``retry_after`` are seconds that it asked to be left alone."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(text)


@dataclass(frozen=True)
class Target:
    """An address whose text has been checked."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them; also the name of the host's circuit."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_listed(self) -> bool:
        """Whether the installation allows it, wherever it may be."""
        listed = {each.lower() for each in settings.OUTBOUND_ALLOWED_HOSTS}
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host in listed or f"{host}:{self.port}" in listed


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: httpx.Headers
    body: bytes
    target: Target


def target_of(url: str) -> Target:
    """The address, if its text allows only one reading. Raises Refused, naming what is wrong."""
    if len(url) > LONGEST_URL:
        raise Refused(f"the URL is longer than {LONGEST_URL} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Refused("the URL must be printable ASCII without spaces and backslashes")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise Refused("the URL cannot be read") from None
    if parts.scheme not in PORTS:
        raise Refused("the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise Refused("the URL must not have a login")
    _check_host(host)
    target = Target(
        parts.scheme,
        host,
        PORTS[parts.scheme] if port is None else port,
        (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )
    if target.port not in (80, 443) and not target.is_listed:
        raise Refused(f"the port {target.port} is not allowed; see CAPATAZ_OUTBOUND_ALLOWED_HOSTS")
    if _address(host) is not None:
        _check_address(target, _address(host))
    return target


def check_header(name: str, value: str) -> None:
    """Raises Refused for a header that cannot be sent, or must not be."""
    if not _TOKEN.fullmatch(name):
        raise Refused("a header's name must be a token of HTTP")
    if name.lower() in FORBIDDEN_HEADERS:
        raise Refused(f"the header {name} must not be given")
    if not value.isascii() or any((ord(each) < 32 and each != "\t") or each == "\x7f" for each in value):
        raise Refused(f"the value of the header {name} must be ASCII without control characters")


def addresses(target: Target) -> list[str]:
    """Every address of the target. Raises Refused if one of them is not allowed."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Unavailable(f"the name {target.host} cannot be resolved") from None
    texts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in texts:
        _check_address(target, ip_address(text.partition("%")[0]))
    return texts


def is_public(address: IPv4Address | IPv6Address | None) -> bool:
    """Whether an address is of the public internet."""
    return address is not None and not any(
        address in network for network in _DENIED if network.version == address.version
    )


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None = None,
    timeout: float,
    largest: int,
    redirects: int = 0,
) -> Answer:
    """Send a request and read the whole answer, in at most ``timeout`` seconds and ``largest`` bytes after
    unpacking.

    Raises Refused for an address that is not allowed, and Unavailable if there is no answer.
    """
    deadline = time.monotonic() + timeout
    given = dict(headers)
    for _ in range(redirects + 1):
        target = target_of(url)
        answer = _ask(method, target, given, content, deadline, largest)
        if answer.status not in (301, 302, 303, 307, 308) or not redirects:
            return answer
        url = urljoin(url, answer.headers.get("location", ""))
        following = target_of(url)
        if (following.scheme, following.authority) != (target.scheme, target.authority):
            given = {name: value for name, value in given.items() if name.lower() in HARMLESS}
            if answer.status in (307, 308) and content is not None:
                raise Refused(f"{target.authority} has redirected what was sent to somebody else")
        if answer.status not in (307, 308) and method != "HEAD":
            method, content = "GET", None
    raise Unavailable(f"{target.authority} has redirected more than {redirects} times")


def _ask(
    method: str, target: Target, headers: dict[str, str], content: bytes | None, deadline: float, largest: int
) -> Answer:
    for name, value in headers.items():
        check_header(name, value)
    pinned = addresses(target)[0]
    host = f"[{pinned}]" if ":" in pinned else pinned
    sent = {"User-Agent": "capataz", **headers, "Host": target.authority, "Accept-Encoding": "gzip, identity"}
    try:
        with (
            _Deadline(deadline) as cut,
            httpx.Client(
                trust_env=False,
                follow_redirects=False,
                timeout=max(0.01, cut.left()),
                verify=ssl.create_default_context(cafile=settings.OUTBOUND_CA_FILE or certifi.where()),
            ) as client,
            client.stream(
                method,
                f"{target.scheme}://{host}:{target.port}{target.path}",
                headers=sent,
                content=content,
                extensions={"sni_hostname": target.host, "trace": cut.trace},
            ) as response,
        ):
            body = b"" if method == "HEAD" else _body(response, largest)
            if cut.has_passed:
                raise Unavailable(f"{target.authority} has taken too long to answer")
            return Answer(response.status_code, response.headers, body, target)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, zlib.error) as error:
        if time.monotonic() >= deadline:
            raise Unavailable(f"{target.authority} has taken too long to answer") from None
        # Not its text: that may quote what was sent.
        raise Unavailable(f"{target.authority} could not be asked: {type(error).__name__}") from None


class _Deadline:
    """Cuts the connection at a time, whatever is being waited for: a peer that sends a byte now and then
    would never be silent for long enough."""

    def __init__(self, at: float) -> None:
        self._at = at
        self._socket: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self.has_passed = False

    def __enter__(self) -> _Deadline:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._socket is not None:
            self._socket.close()

    def left(self) -> float:
        return self._at - time.monotonic()

    def trace(self, event: str, about: dict[str, Any]) -> None:
        """What httpx calls at each step."""
        if event == "connection.connect_tcp.complete" and self._timer is None:
            theirs = about["return_value"].get_extra_info("socket")
            self._socket = socket.socket(fileno=os.dup(theirs.fileno()))
            self._timer = threading.Timer(max(0.0, self.left()), self._cut)
            self._timer.daemon = True
            self._timer.start()

    def _cut(self) -> None:
        self.has_passed = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return


def _body(response: httpx.Response, largest: int) -> bytes:
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", ""):
        raise Unavailable("the answer is packed in a way that was not asked for")
    unpacker = zlib.decompressobj(wbits=31) if coding == "gzip" else None
    body = bytearray()
    for chunk in response.iter_raw(64 * 1024):
        # One byte more than may be, so that a bomb is never unpacked further.
        body += unpacker.decompress(chunk, largest + 1 - len(body)) if unpacker else chunk
        if len(body) > largest:
            raise Refused(f"the answer is larger than {largest:,} bytes")
    return bytes(body)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_host(host: str) -> None:
    """An address in its usual form, or a name that no resolver takes for an address."""
    if "%" in host:
        raise Refused("the URL must not have an IPv6 zone")
    if _address(host) is not None:
        return
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refused("the host of the URL is not a name")
    if _NUMBER.fullmatch(labels[-1]):
        raise Refused("the host of the URL is an address in an unusual form")


def _check_address(target: Target, address: IPv4Address | IPv6Address | None) -> None:
    if not target.is_listed and not is_public(address):
        raise Refused(f"{target.authority} is not on the public internet")
