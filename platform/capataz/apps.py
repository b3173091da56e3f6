"""Wiring: what happens when Django starts."""

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings
from django.db.backends.signals import connection_created
from django.utils.module_loading import autodiscover_modules

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
        for module in settings.CAPATAZ_HANDLERS:
            _import_handlers(module)
        autodiscover_modules("tasks")
        celery.app.finalize()  # durable tasks become handlers
        import_module("capataz.django_tasks").name_queues()
        celery.declare_queues()


def _import_handlers(module: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        hint = f"there is no module {error.name!r}; put its folder on PYTHONPATH, or mend the name"
        raise SystemExit(f"Capataz cannot start: CAPATAZ_HANDLERS names {module!r}: {hint}") from None
    except ConfigurationError as error:
        raise SystemExit(f"Capataz cannot start: a handler in {module!r}: {error}") from None
