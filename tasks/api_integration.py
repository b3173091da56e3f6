"""API integration: one request to another service, and signed webhooks."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from django.conf import settings
from pydantic import AfterValidator, AliasChoices, Field, JsonValue, model_validator

from capataz.errors import Discard
from capataz.handlers import RunningTask, handler
from capataz.policy import Circuit, exponential
from tasks import outbound, signing
from tasks.outbound import Answer, Refused, Target, Unavailable
from tasks.payloads import Payload
from tasks.roots import EXPORTS, PROCESSED, locate, path_under, writing
from tasks.web import wait_of

REFERENCE = "$secret"
MASK = "[masked]"
# Bytes of an answer: as far as the result goes, and as far as a file does.
LARGEST_RESULT, LARGEST_FILE = 512 * 1024, 64 * 1024 * 1024
LONGEST_CALL = 120_000  # milliseconds
MOST_HEADERS = 50
# What of an answer's headers is told.
TOLD = ("content-type", "etag", "last-modified", "location", "retry-after", "x-request-id")


def _address(url: str) -> str:
    outbound.target_of(url)
    return url


Secret = dict[Literal["$secret"], str]
Url = Annotated[str, Field(max_length=outbound.LONGEST_URL), AfterValidator(_address)]
Status = Annotated[int, Field(ge=100, le=599)]
Milliseconds = Annotated[int, Field(ge=1, le=LONGEST_CALL)]
Bytes = Annotated[int, Field(ge=1, le=LARGEST_FILE)]
Headers = Annotated[dict[str, str | Secret], Field(max_length=MOST_HEADERS)]


class Call(Payload):
    """One request. ``timeout`` is milliseconds for all of it.

    ``payload`` is sent as JSON, ``body`` as it is. ``{"$secret": "name"}`` stands for a secret of the
    installation, as the value of a header or of a query parameter, or anywhere in ``payload``. An answer
    with another status than the expected ones (200 to 299) is a failure. ``saveTo`` is a file under
    ``/exports`` or ``/processed``. ``sign`` names the secret with which the request is signed.
    """

    endpoint: Annotated[Url, Field(validation_alias=AliasChoices("endpoint", "url"))]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: Headers = Field(default_factory=dict)
    query: dict[str, str | int | float | bool | Secret] = Field(default_factory=dict)
    payload: Annotated[JsonValue, Field(validation_alias=AliasChoices("payload", "json"))] = None
    body: str | None = None
    timeout: Milliseconds = 30_000
    expected: Annotated[
        list[Status], Field(validation_alias=AliasChoices("expected", "expectedStatuses"))
    ] = Field(default_factory=list)
    largest: Annotated[Bytes, Field(validation_alias=AliasChoices("largest", "maxBytes"))] = LARGEST_RESULT
    save_to: Annotated[str, path_under(EXPORTS, PROCESSED)] | None = None
    redirects: Annotated[int, Field(ge=0, le=outbound.MOST_REDIRECTS)] = 0
    idempotency_key: Annotated[str, Field(pattern=r"^[!-~]{1,255}$")] | None = None
    sign: str | None = None

    @model_validator(mode="after")
    def _can_be_sent(self) -> Call:
        for name, value in self.headers.items():
            outbound.check_header(name, value if isinstance(value, str) else "")
        if self.body is not None and self.payload is not None:
            raise ValueError("give a payload or a body, not both")
        if self.save_to is None and self.largest > LARGEST_RESULT:
            raise ValueError(f"more than {LARGEST_RESULT:,} bytes need saveTo")
        return self


class Webhook(Payload):
    """An event for somebody's endpoint: ``payload`` is sent as JSON, signed with the secret ``sign``."""

    endpoint: Annotated[Url, Field(validation_alias=AliasChoices("endpoint", "url"))]
    payload: JsonValue
    sign: str
    id: Annotated[str, Field(pattern=r"^[!-\-/-~]{1,255}$")] | None = None


@handler(
    "api_integration",
    payload=Call,
    queue="integration",
    retry=exponential(base=2, cap=300, attempts=5),
    soft_time_limit=LONGEST_CALL / 1000 + 20,
    time_limit=LONGEST_CALL / 1000 + 40,
    # Only where there is a key: without one, an installation that never calls anybody could not start.
    sensitive=["payload.headers.*"] if settings.ENCRYPTION_KEYS else [],
)
def integrate(task: RunningTask, call: Call) -> dict[str, Any]:
    """Send one request and return what came back.

    Status 408, 425, 429 and 5xx, and a service that cannot be reached, are tried again, not before the time
    that Retry-After names; other unexpected ones are not. Each request has the header Idempotency-Key, the
    same at every attempt. While a host keeps failing, its tasks wait and spend no attempt.
    """
    secrets = _Secrets(outbound.target_of(call.endpoint))
    url = _with_query(call, secrets)
    headers, content = _headers(task, call, secrets), _content(call, secrets)
    if call.sign is not None:
        headers |= _signed(call.idempotency_key or str(task.id), content or b"", secrets.values(call.sign))
    task.progress(10, "asking")
    began = time.monotonic()
    answer = _send(task, call, url, headers, content)
    task.progress(90, f"answered with status {answer.status}")
    result = {
        "status": answer.status,
        "headers": {name: secrets.hide(answer.headers[name]) for name in TOLD if name in answer.headers},
        "bytes": len(answer.body),
        "durationMs": round((time.monotonic() - began) * 1000),
    }
    if call.save_to is None:
        return result | {"body": secrets.hidden(_document(answer))}
    with writing(locate(call.save_to, EXPORTS, PROCESSED), overwrite=True) as file:
        file.write(secrets.hidden_bytes(answer.body))
    return result | {"savedTo": call.save_to}


@handler(
    "webhook",
    payload=Webhook,
    queue="integration",
    retry=exponential(base=5, cap=3600, attempts=8),
    soft_time_limit=50,
    time_limit=60,
)
def deliver(task: RunningTask, webhook: Webhook) -> dict[str, Any]:
    """Send a signed event; a receiver checks it with ``tasks.signing.verify``. Tried again as a call is."""
    call = Call(
        endpoint=webhook.endpoint,
        method="POST",
        payload=webhook.payload,
        sign=webhook.sign,
        idempotency_key=webhook.id,
    )
    answer = integrate.function(task, call)
    return {"status": answer["status"], "durationMs": answer["durationMs"]}


class _Secrets:
    """The installation's secrets, for one target; remembers what was used, to take it out of the answer."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._used: set[str] = set()

    def values(self, name: str) -> list[str]:
        """Raises Refused for an unknown secret, and for one that must not be sent there."""
        secret = settings.OUTBOUND_SECRETS.get(name)
        if secret is None:
            raise Refused(f"there is no secret {name!r}; see CAPATAZ_OUTBOUND_SECRETS")
        if not {self._target.host, self._target.authority} & set(secret["hosts"]):
            raise Refused(f"the secret {name!r} must not be sent to {self._target.authority}")
        if self._target.scheme != "https" and not self._target.is_listed:
            raise Refused(f"the secret {name!r} must not be sent without TLS")
        values = secret["value"] if isinstance(secret["value"], list) else [secret["value"]]
        self._used.update(values)
        return values

    def filled(self, value: Any) -> Any:
        """The same with the secrets that it names."""
        if isinstance(value, dict):
            if set(value) == {REFERENCE} and isinstance(value[REFERENCE], str):
                return self.values(value[REFERENCE])[0]
            return {name: self.filled(each) for name, each in value.items()}
        return [self.filled(each) for each in value] if isinstance(value, list) else value

    def hide(self, text: str) -> str:
        """The text without the secrets that were sent."""
        for value in sorted(self._used, key=len, reverse=True):
            text = text.replace(value, MASK)
        return text

    def hidden_bytes(self, body: bytes) -> bytes:
        """The same for bytes."""
        for value in sorted(self._used, key=len, reverse=True):
            body = body.replace(value.encode(), MASK.encode())
        return body

    def hidden(self, value: Any) -> Any:
        """The same for a document."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(name): self.hidden(each) for name, each in value.items()}
        return [self.hidden(each) for each in value] if isinstance(value, list) else value


def _with_query(call: Call, secrets: _Secrets) -> str:
    if not call.query:
        return call.endpoint
    pairs = {
        name: str(value).lower() if isinstance(value, bool) else secrets.filled(value)
        for name, value in call.query.items()
    }
    base = call.endpoint.partition("#")[0]
    return f"{base}{'&' if '?' in base else '?'}{urlencode(pairs)}"


def _headers(task: RunningTask, call: Call, secrets: _Secrets) -> dict[str, str]:
    headers: dict[str, str] = {"Idempotency-Key": call.idempotency_key or str(task.id)}
    if call.payload is not None:
        headers["Content-Type"] = "application/json"
    for name, value in call.headers.items():
        for known in [each for each in headers if each.lower() == name.lower()]:
            del headers[known]
        headers[name] = secrets.filled(value)
    return headers


def _content(call: Call, secrets: _Secrets) -> bytes | None:
    if call.body is not None:
        return call.body.encode()
    return None if call.payload is None else json.dumps(secrets.filled(call.payload)).encode()


def _signed(message_id: str, content: bytes, keys: list[str]) -> dict[str, str]:
    try:
        return signing.sign(message_id, content, keys)
    except ValueError as error:
        raise Refused(f"the request cannot be signed: {error}") from None


def _send(task: RunningTask, call: Call, url: str, headers: dict[str, str], content: bytes | None) -> Answer:
    with task.circuit(outbound.target_of(url).authority, Circuit(ignore=(Discard,))):
        answer = outbound.request(
            call.method,
            url,
            headers=headers,
            content=content,
            timeout=call.timeout / 1000,
            largest=call.largest,
            redirects=call.redirects,
        )
        if answer.status in call.expected or (not call.expected and 200 <= answer.status < 300):
            return answer
        said = f"{answer.target.authority} has answered with status {answer.status}"
        if answer.status in (408, 425, 429) or answer.status >= 500:
            after = answer.headers.get("retry-after")
            raise Unavailable(said, None if after is None else wait_of(after).total_seconds())
    raise Discard(f"{said}, which is not expected")


def _document(answer: Answer) -> Any:
    """The body: JSON if it says so and is, else text; what PostgreSQL cannot keep is replaced."""
    text = answer.body.decode("utf-8", "replace").replace("\x00", "\ufffd")
    if "json" in answer.headers.get("content-type", ""):
        try:
            return json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return text
    return text
