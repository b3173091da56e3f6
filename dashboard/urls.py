"""The pages of the dashboard."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path, reverse_lazy

from dashboard.views import overview

app_name = "dashboard"
urlpatterns = [
    path("", overview, name="overview"),
    # The admin's own login turns away whoever has a role and is not staff.
    path(
        "login/",
        LoginView.as_view(template_name="dashboard/login.html", next_page=reverse_lazy("dashboard:overview")),
        name="login",
    ),
    path("logout/", LogoutView.as_view(next_page=reverse_lazy("dashboard:login")), name="logout"),
]
