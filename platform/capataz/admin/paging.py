"""Paging through big tables: lists that never count them and can only be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils.functional import cached_property

from capataz.models.counting import CAP, count

# Django's own classes are generic for the type checker only.
if TYPE_CHECKING:
    AnyPaginator = Paginator[Any]
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyPaginator = Paginator
    AnyModelAdmin = admin.ModelAdmin


class CappedPaginator(AnyPaginator):
    """Pages through the first ``counting.CAP`` rows; whoever looks for more, filters or searches."""

    @cached_property
    def count(self) -> int:
        """How many rows can be paged through."""
        return min(CAP, count(self.object_list).value)  # type: ignore[arg-type]


class ReadOnlyAdmin(AnyModelAdmin):
    """Shows rows that only verbs may write. Nobody adds, edits or deletes one by hand."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each would count the whole table
    list_per_page = 50

    class Media:
        css = {"all": ["capataz/admin.css"]}

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: the form shows, and saves nothing."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: retention deletes."""
        return False
