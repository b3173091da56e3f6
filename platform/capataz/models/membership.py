"""Membership: the role that a signed-in user has, through a group of the role's name."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User

from capataz.models.token import Role


def role_of(user: AbstractBaseUser | AnonymousUser) -> Role | None:
    """What this user may do: the highest role of its groups; None for no role, or no user.

    A superuser is an admin, and staff without a group may look.
    """
    if not isinstance(user, User) or not user.is_active:
        return None
    if user.is_superuser:
        return Role.ADMIN
    names = set(user.groups.filter(name__in=Role.values).values_list("name", flat=True))
    held = [role for role in Role if role.value in names]
    if held:
        return held[-1]
    return Role.VIEWER if user.is_staff else None
