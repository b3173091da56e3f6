"""Django's settings for the peer that keeps results: no more than django-celery-results needs."""

import os

from capataz.servers import django_database

SECRET_KEY = "bench"
USE_TZ = True
INSTALLED_APPS = ["django_celery_results"]
DATABASES = {"default": django_database(os.environ["DATABASE_URL"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING_CONFIG = None
