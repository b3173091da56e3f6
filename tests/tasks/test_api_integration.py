"""Requests to addresses that a client names: to public ones only, and with bounds; secrets stay secret."""

from __future__ import annotations

import datetime
import gzip
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pytest_django import Settings

from capataz.errors import Discard, InvalidSubmission
from capataz.handlers import RunningTask, find
from tasks import outbound, signing
from tasks.outbound import Refused, Unavailable, is_public, target_of

Reply = tuple[int, dict[str, str], bytes]


class Service(ThreadingHTTPServer):
    """Answers as it is told, and remembers what it was asked."""

    asked: list[tuple[str, str, dict[str, str], bytes]]
    reply: Callable[[str], Reply | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Door(BaseHTTPRequestHandler):
    server: Service

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers.items()), body))
        reply = self.server.reply(self.path)
        if reply is None:  # a byte now and then
            self.server.dripping = True  # type: ignore[attr-defined]
            for _ in range(100):
                try:
                    self.wfile.write(b"H" if _ else b"HTTP/1.1 200 OK\r\nX: ")
                except OSError:
                    return
                time.sleep(0.05)
            return
        status, headers, content = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    server = Service(("127.0.0.1", 0), Door)
    server.asked, server.reply = [], lambda path: (200, {"Content-Type": "application/json"}, b'{"ok": true}')
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    settings.OUTBOUND_ALLOWED_HOSTS = [f"127.0.0.1:{server.server_port}"]
    settings.OUTBOUND_SECRETS = {
        "crm": {"value": "hunter2-hunter2", "hosts": ["127.0.0.1"]},
        "hook": {"value": ["whsec_bmV3", "whsec_b2xk"], "hosts": ["127.0.0.1"]},
        "other": {"value": "not-for-you", "hosts": ["api.other.example"]},
    }
    yield server
    server.shutdown()
    server.server_close()


def run(type: str = "api_integration", **data: Any) -> dict[str, Any]:
    handler = find(type)
    task = RunningTask(uuid.uuid4(), type, attempt=1, starts=1)
    result: dict[str, Any] = handler.function(task, handler.load(handler.parse(data)))
    json.dumps(result, allow_nan=False)
    return result


# The seed's sample.


def test_the_seed_sample_ends_completed(service: Service) -> None:
    sample: dict[str, Any] = {
        "endpoint": f"{service.url}/webhook",
        "method": "POST",
        "headers": {"Authorization": "Bearer token"},
        "payload": {"action": "sync"},
    }
    result = run(**sample)
    assert (result["status"], result["body"]) == (200, {"ok": True})
    [(method, path, headers, body)] = service.asked
    assert (method, path, json.loads(body)) == ("POST", "/webhook", {"action": "sync"})
    assert headers["Authorization"] == "Bearer token"
    assert headers["Content-Type"] == "application/json"


def test_the_idempotency_key_is_the_same_at_every_attempt(service: Service) -> None:
    handler, id = find("api_integration"), uuid.uuid4()
    for attempt in (1, 2):
        call = handler.load(handler.parse({"url": service.url}))
        handler.function(RunningTask(id, "api_integration", attempt=attempt, starts=attempt), call)
    assert {headers["Idempotency-Key"] for _, _, headers, _ in service.asked} == {str(id)}


def test_query_and_secrets_are_filled_in_and_never_come_back(service: Service) -> None:
    service.reply = lambda path: (200, {"X-Request-Id": "hunter2-hunter2"}, f"you sent {path}".encode())
    result = run(
        endpoint=f"{service.url}/a?b=1",
        query={"page": 2, "key": {"$secret": "crm"}},
        headers={"X-Key": {"$secret": "crm"}},
    )
    [(_, path, headers, _)] = service.asked
    assert (path, headers["X-Key"]) == ("/a?b=1&page=2&key=hunter2-hunter2", "hunter2-hunter2")
    assert "hunter2" not in json.dumps(result)


@pytest.mark.parametrize("name", ["other", "nobody"])
def test_a_secret_goes_to_its_own_hosts_alone(service: Service, name: str) -> None:
    with pytest.raises(Refused) as refused:
        run(endpoint=service.url, headers={"X-Key": {"$secret": name}})
    assert "not-for-you" not in str(refused.value)
    assert service.asked == []


# What is tried again and what is not.


def test_an_answer_that_asks_for_patience_is_tried_again_later(service: Service) -> None:
    service.reply = lambda path: (503, {"Retry-After": "7"}, b"")
    with pytest.raises(Unavailable, match="status 503") as error:
        run(endpoint=service.url)
    assert error.value.retry_after == 7


def test_an_answer_that_will_not_change_is_not_tried_again(service: Service) -> None:
    service.reply = lambda path: (404, {}, b"hush")
    with pytest.raises(Discard, match="404, which is not expected") as error:
        run(endpoint=service.url)
    assert "hush" not in str(error.value)
    assert run(endpoint=service.url, expectedStatuses=[404])["status"] == 404


def test_nobody_there_is_tried_again(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        settings.OUTBOUND_ALLOWED_HOSTS = [f"127.0.0.1:{port}"]
        with pytest.raises(Unavailable, match="could not be asked"):
            run(endpoint=f"http://127.0.0.1:{port}/")


# What it may cost.


def test_an_answer_that_is_too_large_is_cut_off(service: Service) -> None:
    service.reply = lambda path: (200, {}, b"x" * 2000)
    with pytest.raises(Refused, match="larger than 1,000 bytes"):
        run(endpoint=service.url, maxBytes=1000)
    assert run(endpoint=service.url, maxBytes=2000)["bytes"] == 2000


def test_a_bomb_is_not_unpacked(service: Service) -> None:
    bomb = gzip.compress(b"0" * 200_000_000, 9)
    service.reply = lambda path: (200, {"Content-Encoding": "gzip"}, bomb)
    began = time.monotonic()
    with pytest.raises(Refused, match="larger"):
        run(endpoint=service.url)
    assert time.monotonic() - began < 60
    service.reply = lambda path: (200, {"Content-Encoding": "gzip"}, gzip.compress(b"fine"))
    assert run(endpoint=service.url)["body"] == "fine"


def test_another_packing_is_refused(service: Service) -> None:
    service.reply = lambda path: (200, {"Content-Encoding": "gzip, gzip"}, b"")
    with pytest.raises(Unavailable, match="packed"):
        run(endpoint=service.url)


def test_a_peer_that_drips_is_cut_off(service: Service) -> None:
    service.reply = lambda path: None
    began = time.monotonic()
    with pytest.raises(Unavailable, match="too long"):
        run(endpoint=service.url, timeout=300)
    assert service.dripping  # type: ignore[attr-defined]
    assert time.monotonic() - began < 4


def test_an_answer_is_saved_under_the_exports(service: Service, settings: Settings, tmp_path: Path) -> None:
    settings.EXPORT_ROOT = tmp_path
    service.reply = lambda path: (200, {}, b"\x00\xffhunter2-hunter2")
    result = run(endpoint=service.url, saveTo="/exports/a.bin", headers={"X": {"$secret": "crm"}})
    assert "body" not in result
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff[masked]"


# Where it may go.

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.0.192", "192.0.2.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
    "255.255.255.255", "192.88.99.1",
]  # fmt: skip
PRIVATE_6 = [
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0:7f00:1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
    "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1",
    "ff02::1", "4000::1",
]  # fmt: skip
UNUSUAL = [
    "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "017700000001",
    "127.0.0.01", "1.0x7f", "127.0.0.1.", "localhost.", "0",
]  # fmt: skip


@pytest.mark.parametrize("host", [*PRIVATE, *(f"[{each}]" for each in PRIVATE_6)])
def test_private_addresses_are_refused_when_they_are_submitted(host: str) -> None:
    with pytest.raises(InvalidSubmission, match="not on the public internet"):
        run(endpoint=f"http://{host}/")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "172.32.0.1", "100.128.0.1"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", UNUSUAL)
def test_unusual_spellings_are_refused(host: str) -> None:
    with pytest.raises(InvalidSubmission, match="host of the URL"):
        run(endpoint=f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/", "file:///etc/passwd", "gopher://a.example/", "//a.example/", "a.example", "http://",
        "http://user@a.example/", "http://a.example@127.0.0.1/", "http://a.example\\@127.0.0.1/",
        "http://a.example:22/", "http://a.example:99999/", "http://[fe80::1%25eth0]/", "http://[::1",
        "http://a.example/\r\nX: y", "http://a.example/ b", "http://\uff11\uff12\uff17.0.0.1/", "http://a..example/",
        "http://-a.example/", "http://a.example/" + "x" * 3000, "http://a.example:0/",
    ],
)  # fmt: skip
def test_urls_that_can_be_read_in_two_ways_are_refused(url: str) -> None:
    with pytest.raises(InvalidSubmission):
        run(endpoint=url)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names are looked up here: each look-up gets the next answer, the last one for ever."""
    asked: list[str] = []
    really = socket.getaddrinfo

    def look_up(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if outbound._address(host) is not None:
            return really(host, port, *more, **options)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "found", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1%1"]]
)
def test_a_name_is_refused_if_one_of_its_addresses_is(
    monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    resolve_to(monkeypatch, found)
    with pytest.raises(Refused, match=r"a\.example is not on the public internet"):
        run(endpoint="http://a.example/")


def test_a_name_that_changes_in_between_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_to(monkeypatch, ["192.0.2.9"], ["127.0.0.1"])
    monkeypatch.setattr(outbound, "is_public", lambda address: str(address) == "192.0.2.9")
    connected: list[Any] = []

    def connect(address: Any, *_: Any, **__: Any) -> Any:
        connected.append(address[0])
        raise OSError("nothing is there")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Unavailable):
        run(endpoint="http://a.example/")
    assert (asked, connected) == (["a.example"], ["192.0.2.9"])


def test_redirects_are_not_followed_unless_asked_and_each_is_checked(service: Service) -> None:
    service.reply = lambda path: (302, {"Location": "http://169.254.169.254/latest/meta-data"}, b"")
    with pytest.raises(Discard, match="302, which is not expected"):
        run(endpoint=service.url)
    with pytest.raises(Refused, match="not on the public internet"):
        run(endpoint=service.url, redirects=3)


def test_a_redirect_takes_no_credentials_to_another_origin(service: Service, settings: Settings) -> None:
    settings.OUTBOUND_ALLOWED_HOSTS = [*settings.OUTBOUND_ALLOWED_HOSTS, "localhost"]
    elsewhere = f"http://localhost:{service.server_port}/there"
    service.reply = lambda path: (200, {}, b"") if path == "/there" else (302, {"Location": elsewhere}, b"")
    run(endpoint=service.url, redirects=1, headers={"X-Key": {"$secret": "crm"}, "Accept": "text/plain"})
    first, second = [headers for _, _, headers, _ in service.asked]
    assert (first["X-Key"], first["Accept"], second["Accept"]) == (
        "hunter2-hunter2",
        "text/plain",
        "text/plain",
    )
    assert "X-Key" not in second
    service.reply = lambda path: (307, {"Location": elsewhere}, b"")
    with pytest.raises(Refused, match="somebody else"):
        run(endpoint=service.url, method="POST", redirects=1, payload={"key": {"$secret": "crm"}})


def test_proxies_of_the_environment_are_not_used(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run(endpoint=service.url)["status"] == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nEvil: 1"), ("X", "a\nb"), ("X\r\nEvil", "1"), ("X y", "1"), ("", "1"), ("X", "a\x00"),
        ("Host", "a"), ("Transfer-Encoding", "chunked"), ("Connection", "close"), ("Content-Length", "1"),
    ],
)  # fmt: skip
def test_headers_that_would_change_the_message_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidSubmission, match="header"):
        run(endpoint="http://a.example/", headers={name: value})


def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(
    service: Service, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api.example.com")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = tmp_path / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    service.socket = context.wrap_socket(service.socket, server_side=True)
    settings.OUTBOUND_CA_FILE = str(pem)
    settings.OUTBOUND_ALLOWED_HOSTS = ["api.example.com", "other.example.com"]
    resolve_to(monkeypatch, ["127.0.0.1"])
    assert run(endpoint=f"https://api.example.com:{service.server_port}/webhook")["status"] == 200
    assert service.asked[0][2]["Host"] == f"api.example.com:{service.server_port}"
    with pytest.raises(Unavailable, match="could not be asked"):
        run(endpoint=f"https://other.example.com:{service.server_port}/webhook")


# Signatures.


def test_a_webhook_is_signed_with_every_key(service: Service) -> None:
    run(
        "webhook",
        endpoint=f"{service.url}/hook",
        payload={"event": "paid", "amount": 5},
        sign="hook",
        id="evt_1",
    )
    [(_, _, headers, body)] = service.asked
    for keys in (["whsec_bmV3"], ["whsec_b2xk"], ["unknown", "whsec_b2xk"]):
        assert signing.verify(headers, body, keys) == "evt_1"


def test_a_signature_is_that_of_the_specification() -> None:
    # The example of standardwebhooks.com.
    headers = signing.sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        at=1614265330,
    )  # fmt: skip
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "change", ["body", "id", "timestamp", "signature", "key", "old", "future", "missing"]
)
def test_what_was_changed_or_is_not_of_now_is_not_accepted(change: str) -> None:
    headers, body, keys, at = signing.sign("evt_1", b"body", ["key"], at=1000), b"body", ["key"], 1000.0
    assert signing.verify(headers, body, keys, at=at) == "evt_1"
    match change:
        case "body":
            body = b"Body"
        case "key":
            keys = ["other"]
        case "old":
            at += 301
        case "future":
            at -= 301
        case "missing":
            del headers["webhook-signature"]
        case _:
            headers[f"webhook-{change}"] = "1001"
    with pytest.raises(signing.BadSignature):
        signing.verify(headers, body, keys, at=at)


def test_a_target_says_how_it_is_called() -> None:
    assert target_of("https://API.example.com/x").authority == "api.example.com"
    assert target_of("http://[2606:4700::1111]/").authority == "[2606:4700::1111]"
