"""Finding handlers: the modules that CAPATAZ_HANDLERS names, and the `tasks` modules of Django's apps."""

from __future__ import annotations

import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from django.apps import apps
from django.conf import settings
from django.utils.module_loading import module_has_submodule

from capataz.errors import ConfigurationError

# Modules of a package that have no handlers of its, whatever their names say.
_NO_HANDLERS = re.compile(r"(admin|apps|models|migrations|tests?|test_.*|conftest|_.*)\Z")

# What could not be imported, as a sentence each.
faults: list[str] = []


def discover() -> None:
    """Import every module that may have handlers. What cannot be imported is in ``faults`` afterwards."""
    faults.clear()
    for name in settings.CAPATAZ_HANDLERS:
        module = _imported(name, f"CAPATAZ_HANDLERS names {name!r}")
        if module is not None:
            _import_modules_of(module)
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, "tasks"):
            _imported(f"{config.name}.tasks", f"the app {config.name!r} has tasks")


def finds_faults_itself() -> bool:
    """Whether this is ``manage.py check`` or ``newtask``, which work in spite of a broken module."""
    program = Path(sys.argv[0]).name
    return program in ("manage.py", "django-admin", "__main__.py") and sys.argv[1:2] in (
        ["check"],
        ["newtask"],
    )


def _import_modules_of(package: ModuleType) -> None:
    """All of a package; one that says in ``__all__`` what it has is taken at its word."""
    if hasattr(package, "__all__"):
        return
    for name in _modules_of(package):
        module = _imported(name, f"the package {package.__name__!r} has the module {name!r}")
        if module is not None:
            _import_modules_of(module)


def _modules_of(package: ModuleType) -> Iterator[str]:
    for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if not _NO_HANDLERS.match(found.name):
            yield f"{package.__name__}.{found.name}"


def _imported(name: str, who: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name!r}; put its folder on PYTHONPATH, or mend the name"
        else:
            why = _where_and_why(error)
    except ConfigurationError as error:
        faults.append(f"a handler in {name!r}: {error}")
        return None
    except Exception as error:
        why = _where_and_why(error)
    faults.append(f"{who}: {why}")
    return None


def _where_and_why(error: Exception) -> str:
    """The line that raised, without those of importing."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1]
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    last = frames[-1] if frames else last
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
