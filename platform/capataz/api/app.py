"""The API, version 1: its routers, its documentation, and its addresses."""

from __future__ import annotations

from functools import partial

from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from ninja import NinjaAPI
from ninja.openapi.views import openapi_view

from capataz.api import bulk, circuits, problems, queues, reports, tasks, types, workers, workflows
from capataz.api.auth import Allows
from capataz.api.body import BodyParser
from capataz.api.wire import answer
from capataz.models import Role

DESCRIPTION = """
Submit tasks, follow them, cancel and retry them. Send `Authorization: Bearer <token>`; a signed-in session
works too, with its CSRF token. Roles: a viewer reads, a producer also submits, an operator also cancels,
retries, pauses and resumes. Every error is `application/problem+json`.
"""

api = NinjaAPI(
    title="Capataz",
    version="1",
    description=DESCRIPTION,
    urls_namespace="api-v1",
    parser=BodyParser(),
    openapi_url=None,
    docs_url=None,
)
for kind in (Exception, *problems.NINJA_HANDLES_ITSELF):
    api.add_exception_handler(kind, problems.answer)
for router in (
    tasks.router, workers.router, types.router, queues.router, bulk.router, circuits.router, workflows.router,
    reports.router,
):  # fmt: skip
    api.add_router("", router)


@api.get("/openapi.json", auth=Allows(Role.VIEWER), include_in_schema=False, url_name="openapi-json")
def openapi(request: HttpRequest) -> HttpResponse:
    """The OpenAPI document of all this."""
    return answer(api.get_openapi_schema())


def addresses() -> list[URLPattern]:
    """The API's addresses, each answering every error as a problem."""
    documentation = staff_member_required(partial(openapi_view, api=api))
    patterns = [pattern for pattern in api.urls[0] if isinstance(pattern, URLPattern)]
    for pattern in patterns:
        pattern.callback = problems.guard(pattern.callback)
    return [*patterns, path("docs", documentation, name="openapi-view")]
