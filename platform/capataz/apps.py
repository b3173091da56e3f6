"""Wiring: what happens when Django starts."""

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings


class CapatazConfig(AppConfig):
    """The platform's one Django app."""

    name = "capataz"
    verbose_name = "Capataz"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Make the Celery app, register the checks and every handler."""
        celery = import_module("capataz.celery")
        import_module("capataz.checks")
        for module in settings.CAPATAZ_HANDLERS:
            import_module(module)
        celery.declare_queues()
