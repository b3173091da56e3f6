"""The work: importing this package registers the shipped handlers."""

from django.conf import settings

from tasks import (
    api_integration,
    bulk,
    cleanup,
    compute,
    email,
    exports,
    external_sync,
    files,
    front_matter_index,
    images,
    queries,
    reports,
    sql_export,
    upkeep,
)

__all__ = [
    "api_integration",
    "bulk",
    "cleanup",
    "compute",
    "email",
    "exports",
    "external_sync",
    "files",
    "front_matter_index",
    "images",
    "reports",
    "sql_export",
    "upkeep",
]

queries.load()

if settings.CAPATAZ_DEMO:
    from tasks import demo

    __all__ += ["demo"]
