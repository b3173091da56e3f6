"""Wiring: what happens when Django starts."""

from importlib import import_module

from django.apps import AppConfig
from django.db.backends.signals import connection_created

from capataz import discovery
from capataz.database import keep_nothing_in_a_pooled_session
from capataz.errors import ConfigurationError


class CapatazConfig(AppConfig):
    """The platform's one Django app."""

    name = "capataz"
    verbose_name = "Capataz"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Make the Celery app, register the checks and every handler."""
        connection_created.connect(keep_nothing_in_a_pooled_session)
        celery = import_module("capataz.celery")
        import_module("capataz.checks")
        discovery.discover()
        try:
            celery.app.finalize()  # durable tasks become handlers
            import_module("capataz.django_tasks").name_queues()
        except ConfigurationError as error:
            discovery.faults.append(str(error))
        if discovery.faults and not discovery.finds_faults_itself():
            raise SystemExit("\n".join(f"Capataz cannot start: {fault}" for fault in discovery.faults))
        celery.declare_queues()
