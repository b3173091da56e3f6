"""The work: importing this package registers the shipped handlers."""

from django.conf import settings

from tasks import api_integration, bulk, cleanup, compute, email, external_sync, files, images, upkeep

__all__ = [
    "api_integration",
    "bulk",
    "cleanup",
    "compute",
    "email",
    "external_sync",
    "files",
    "images",
    "upkeep",
]

if settings.CAPATAZ_DEMO:
    from tasks import demo

    __all__ += ["demo"]
