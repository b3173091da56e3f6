"""Wiring of the dashboard."""

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    """The window: it reads models and calls verbs, and nothing of the machine knows it."""

    name = "dashboard"
    verbose_name = "Dashboard"
