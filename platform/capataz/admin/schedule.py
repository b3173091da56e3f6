"""Schedules in the admin: django-celery-beat's own pages, with what Capataz adds to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask

from capataz.models import Schedule

if TYPE_CHECKING:
    AnyStackedInline = admin.StackedInline[Schedule, PeriodicTask]
else:
    AnyStackedInline = admin.StackedInline


class ScheduleInline(AnyStackedInline):
    """What to do about missed due times and overlaps."""

    model = Schedule
    can_delete = False
    verbose_name = verbose_name_plural = "downtimes and overlaps"
    readonly_fields = ("last_due",)
    fields = ("missed", "missed_limit", "overlap", "last_due")


class ScheduledTaskAdmin(PeriodicTaskAdmin):
    """A schedule on one page."""

    inlines = (*PeriodicTaskAdmin.inlines, ScheduleInline)


admin.site.unregister(PeriodicTask)
admin.site.register(PeriodicTask, ScheduledTaskAdmin)
