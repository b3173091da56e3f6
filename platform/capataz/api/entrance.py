"""The entrance ``/``: browsers go to the dashboard, programs are told where things are."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_safe

from capataz.api.wire import answer

PLACES = {
    "tasks": "/api/v1/tasks",
    "openapi": "/api/v1/openapi.json",
    "docs": "/api/v1/docs",
    "health": "/health",
    "dashboard": "/dashboard/",
    "admin": "/admin/",
}


@require_safe
def entrance(request: HttpRequest) -> HttpResponse:
    """Where to go from here."""
    if "text/html" in request.headers.get("Accept", ""):
        response: HttpResponse = HttpResponseRedirect(PLACES["dashboard"])
    else:
        response = answer({"name": "capataz", "endpoints": PLACES})
    response["Vary"] = "Accept"
    return response
