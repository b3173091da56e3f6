"""The admin: a door. It shows the nouns, and its actions call verbs."""

from django.contrib import admin

from capataz.admin import circuit, event, queue, report, schedule, task, token, type_policy, worker

__all__ = ["circuit", "event", "queue", "report", "schedule", "task", "token", "type_policy", "worker"]

admin.site.site_header = admin.site.site_title = "Capataz"
admin.site.index_title = "Administration"
admin.site.site_url = "/dashboard/"
