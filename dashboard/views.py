"""The pages. Each asks the models and fills a template."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from capataz.models import Event, Worker
from capataz.models.membership import role_of
from capataz.models.queue_load import queue_loads
from dashboard.census import census

MOST_WORKERS = 100
LATEST_EVENTS = 20


@require_safe
@login_required(login_url="dashboard:login")
def overview(request: HttpRequest) -> HttpResponse:
    """Everything at one glance: how many tasks, where they wait, who works, what happened."""
    if role_of(request.user) is None:
        raise PermissionDenied
    alive = Worker.objects.alive()
    content = {
        "now": timezone.now(),
        "census": census(),
        "queues": queue_loads(),
        "workers": alive[:MOST_WORKERS],
        "worker_count": alive.count(),
        "events": Event.objects.order_by("-id")[:LATEST_EVENTS],
    }
    response = render(request, "dashboard/overview.html", content)
    response["Cache-Control"] = "no-store"
    return response
