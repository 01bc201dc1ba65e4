"""Marks of ownership: a lake and an online store hold the name of their deployment, and serve no other deployment."""

from __future__ import annotations

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.ownership.objects import Objects, objects_of

MARK = ".deployment"


def lake_owner(objects: Objects) -> str | None:
    """Name of the deployment that the lake belongs to; None if the lake has no mark yet.

    An empty mark counts as no mark, because a full disk or a kill can leave an empty file.
    """
    content = objects.read(MARK)
    return (content or b"").decode("utf-8", errors="replace").strip() or None


def require_own_lake(deployment: Deployment) -> None:
    """Refuse a lake that belongs to another deployment; writes nothing.

    Raises:
        ConfigError: The lake carries another deployment's name.
    """
    _refuse_other(lake_owner(objects_of(deployment.paths.lake)), deployment)


def claim_lake(objects: Objects, deployment: Deployment) -> None:
    """Mark the lake as this deployment's own; two deployments would overwrite each other's days.

    Args:
        objects: The files of the lake.
        deployment: Deployment that becomes the owner.

    Raises:
        ConfigError: The lake carries another deployment's name.
    """
    name = deployment.deployment.name.encode()
    if not objects.create(MARK, name) and lake_owner(objects) is None:
        objects.replace(MARK, name)
    _refuse_other(lake_owner(objects), deployment)


def _refuse_other(owner: str | None, deployment: Deployment) -> None:
    name = deployment.deployment.name
    if owner not in (None, name):
        raise ConfigError(
            f"paths.lake = {deployment.paths.lake!r}: the lake belongs to deployment {owner!r}, not to {name!r}: name "
            f"another folder in paths.lake; if deployment {owner!r} was renamed, write {name!r} into the lake's file "
            f"{MARK}"
        )
