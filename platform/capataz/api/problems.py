"""Problems: every error of the API as ``application/problem+json`` (RFC 9457), in one place."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import psycopg
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFieldsSent,
)
from django.db import DataError, InterfaceError, OperationalError
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    UnreadablePostError,
)
from django.http.request import RawPostDataException
from django.views import defaults
from ninja.errors import HttpError, ValidationError

from capataz.errors import CannotDecrypt, Conflict, Fault, IllegalMove, InvalidSubmission, QueueFull

CONTENT_TYPE = "application/problem+json"
API_PATHS = ("/api/", "/health")
MOST_FAULTS = 100
LONGEST_POINTER = 200
LONGEST_DETAIL = 1000
# Seconds after which a client may ask again while the database is away: it restarts within a few.
RETRY_AFTER = 5

View = Callable[..., HttpResponseBase]

_log = logging.getLogger(__name__)


class Problem(Exception):
    """An answer that says what is wrong. ``more`` are further members of the document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.faults = faults
        self.headers = dict(headers or {})
        self.more = more
        super().__init__(detail)

    def answer(self) -> HttpResponse:
        """The problem as a response."""
        document = {
            "type": f"urn:capataz:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail[:LONGEST_DETAIL],
            "code": self.code,
            "errors": [_error(fault) for fault in self.faults[:MOST_FAULTS]],
            **self.more,
        }
        response = JsonResponse(document, status=self.status, content_type=CONTENT_TYPE)
        for name, value in self.headers.items():
            response[name] = value
        return response


def of(error: Exception) -> Problem:
    """The problem that an exception stands for. One that nobody expected is logged, and says nothing."""
    for kinds, translate in _TRANSLATIONS:
        if isinstance(error, kinds):
            return translate(error)
    _log.error("a request failed unexpectedly", exc_info=error)
    return Problem(500, "internal", "The request failed unexpectedly; the log says why.")


def answer(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
    """``of`` as django-ninja calls it."""
    return of(error if isinstance(error, Exception) else error()).answer()


def guard(view: View) -> View:
    """The view, except that whatever goes wrong in it is answered as a problem, and HEAD works as GET."""

    @functools.wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method == "HEAD":
            request.method = "GET"
            return _without_body(_answered(view, request, *args, **kwargs))
        return _answered(view, request, *args, **kwargs)

    return guarded


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400: a problem under the API's paths, Django's own page elsewhere."""
    if _is_api(request):
        return Problem(400, "bad_request", "The request cannot be understood.").answer()
    return defaults.bad_request(request, exception)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler403."""
    return (
        of(PermissionDenied()).answer()
        if _is_api(request)
        else defaults.permission_denied(request, exception)
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404."""
    return of(Http404()).answer() if _is_api(request) else defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500."""
    if _is_api(request):
        return Problem(500, "internal", "The request failed unexpectedly; the log says why.").answer()
    return defaults.server_error(request)


def _answered(view: View, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
    try:
        _refuse_unknown_length(request)
        response = view(request, *args, **kwargs)
    except Exception as error:
        return of(error).answer()
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _method_not_allowed(response["Allow"]).answer()
    return response


def _without_body(response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, HttpResponse):
        response["Content-Length"] = str(len(response.content))
        response.content = b""
    return response


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith(API_PATHS)


def _refuse_unknown_length(request: HttpRequest) -> None:
    # Django reads as many bytes as Content-Length says: a chunked body would look empty.
    if "Transfer-Encoding" in request.headers and not request.headers.get("Content-Length"):
        raise Problem(411, "length_required", "Send the body with a Content-Length.")


def _error(fault: Fault) -> dict[str, str]:
    detail = fault.detail[:LONGEST_DETAIL]
    return {
        "pointer": "/" + fault.pointer.lstrip("/")[:LONGEST_POINTER],
        "code": fault.code,
        "detail": detail,
    }


def _method_not_allowed(allowed: str) -> Problem:
    return Problem(405, "method_not_allowed", f"This address takes {allowed}.", headers={"Allow": allowed})


def _invalid_submission(error: InvalidSubmission) -> Problem:
    faults = [Fault(_named_here(fault.pointer), fault.code, fault.detail) for fault in error.faults]
    return Problem(422, "invalid_submission", "What was submitted cannot be accepted.", faults=faults)


def _named_here(pointer: str) -> str:
    """The place of a fault by the API's own names: a time limit is a ``timeout`` here."""
    return re.sub(r"(^|/)timeLimit$", r"\1timeout", pointer)


def _invalid_request(error: ValidationError) -> Problem:
    faults = [
        Fault(_pointer(fault["loc"]), fault["type"], fault["msg"]) for fault in error.errors[:MOST_FAULTS]
    ]
    return Problem(
        422, "invalid_request", "The request does not have the form that it must have.", faults=faults
    )


def _pointer(location: Sequence[Any]) -> str:
    """The place in the document: without "body" and the name of the view's parameter."""
    source, *rest = location
    path = rest[1:] if source == "body" else [source, *rest]
    return _named_here("/".join(str(part) for part in path))


def _http_error(error: HttpError) -> Problem:
    # What the parser of bodies raises reaches us as the cause of an error of django-ninja's.
    if isinstance(error.__cause__, Problem):
        return error.__cause__
    return Problem(error.status_code, "bad_request", str(error))


def _unavailable(error: Exception) -> Problem:
    cause = error.__cause__ if isinstance(error, OperationalError) else error
    headers = {"Retry-After": str(RETRY_AFTER)}
    if isinstance(cause, psycopg.errors.QueryCanceled):
        return Problem(503, "too_slow", "The answer takes too long; ask for less.", headers=headers)
    if isinstance(cause, psycopg.errors.LockNotAvailable):
        detail = "Somebody else is changing this just now; try again."
        return Problem(503, "locked", detail, headers=headers)
    _log.warning("a request found no database: %s", type(cause or error).__name__)
    return Problem(503, "database_unavailable", "The database cannot be reached now.", headers=headers)


def _conflict(error: Conflict) -> Problem:
    if error.holder is None:
        return Problem(409, "conflict", str(error))
    return Problem(409, "conflict", str(error), id=str(error.holder))


def _queue_full(error: QueueFull) -> Problem:
    """The platform's own excess, not the caller's: 503 and not 429."""
    headers = {"Retry-After": str(error.retry_after)}
    return Problem(
        503,
        "queue_full",
        str(error),
        headers=headers,
        queue=error.queue,
        waitingLimit=error.limit,
        waiting=error.waiting,
    )


def _constant(status: int, code: str, detail: str) -> Callable[[Any], Problem]:
    return lambda _: Problem(status, code, detail)


# django-ninja has handlers of its own for these, which ours replace.
NINJA_HANDLES_ITSELF = (Http404, HttpError, ValidationError)

_DATABASE_IS_AWAY = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)

# The first that fits. Texts of exceptions that were not written for clients are not repeated to them.
_TRANSLATIONS: Sequence[tuple[Any, Callable[[Any], Problem]]] = (
    (Problem, lambda problem: problem),
    (InvalidSubmission, _invalid_submission),
    (ValidationError, _invalid_request),
    (IllegalMove, lambda error: Problem(409, "illegal_move", str(error))),
    (Conflict, _conflict),
    (QueueFull, _queue_full),
    (CannotDecrypt, lambda error: Problem(409, "cannot_decrypt", f"This cannot be shown: {error}.")),
    (HttpError, _http_error),
    (Http404, _constant(404, "not_found", "There is nothing at this address.")),
    (PermissionDenied, _constant(403, "forbidden", "This is not allowed.")),
    (RequestDataTooBig, _constant(413, "too_large", "The body is larger than this address takes.")),
    ((TooManyFieldsSent, UnreadablePostError), _constant(400, "bad_request", "The body cannot be read.")),
    # A session's CSRF check has read it as a form.
    (
        RawPostDataException,
        _constant(415, "unsupported_media_type", "Send the body as application/json in UTF-8."),
    ),
    ((BadRequest, SuspiciousOperation), _constant(400, "bad_request", "The request cannot be understood.")),
    (_DATABASE_IS_AWAY, _unavailable),
    ((DataError, psycopg.DataError), _constant(422, "unstorable", "A value cannot be kept by the database.")),
)
