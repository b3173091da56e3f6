"""Every address of the web process."""

from django.contrib import admin
from django.urls import include, path

from capataz.api.app import addresses
from capataz.api.entrance import entrance
from capataz.api.health import health, live

urlpatterns = [
    path("", entrance, name="entrance"),
    path("health", health, name="health"),
    path("health/live", live, name="health-live"),
    path("api/v1/", include((addresses(), "ninja"), namespace="api-v1")),
    path("admin/", admin.site.urls),
    path("dashboard/", include("dashboard.urls")),
]

handler400 = "capataz.api.problems.bad_request"
handler403 = "capataz.api.problems.forbidden"
handler404 = "capataz.api.problems.not_found"
handler500 = "capataz.api.problems.server_error"
