"""What an online store keeps: manifest, pointer and journal entry, and the errors of a store."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from jobs.store.rows import Buffer, Checksum


class OnlineStoreError(RuntimeError):
    """Something about the online store failed; the message names the store."""


class StoreUnreachableError(OnlineStoreError):
    """The store does not answer."""


class StoreAuthError(OnlineStoreError):
    """The store refused the user or the password."""


class StoreFullError(OnlineStoreError):
    """The store has no space for another version; the live version is unchanged."""


class StoreLockedError(OnlineStoreError):
    """Another process is publishing, or took over the lock."""


class NoLiveSnapshotError(OnlineStoreError):
    """Nothing has been published yet."""


class BasisMismatchError(OnlineStoreError):
    """The basis_version of the vectors is not the basis_version that the caller works with."""


class VersionGoneError(OnlineStoreError):
    """The store no longer keeps the version that a read had pinned; the read starts again with the live version."""


class VersionDamagedError(OnlineStoreError):
    """The stored version cannot be read, because it was cut, overwritten or never finished."""


@dataclass(frozen=True)
class SnapshotManifest:
    """What a version holds.

    Attributes:
        version: Name of the version in its store; each load has another name.
        ds: Data day of the LTEs.
        basis_version: Basis of the vectors.
        lte_window: Window in days before the end of ds, ``365-60``.
        method: How interactions were weighted.
        dim: Number of floats per vector.
        row_count: Users in the version now.
        checksum: Checksum of exactly these users' rows (:class:`jobs.store.rows.Checksum`).
        code_version: Version of the code that published it.
        n_erased: Users deleted since the load; ``row_count`` and ``checksum`` no longer include them.
        half_life_days: Half-life of recency weights; None for other methods, and in a manifest older than this field.
    """

    version: str
    ds: date
    basis_version: str
    lte_window: str
    method: str
    dim: int
    row_count: int
    checksum: str
    code_version: str
    n_erased: int = 0
    half_life_days: float | None = None

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        return json.dumps(dataclasses.asdict(self) | {"ds": self.ds.isoformat()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | Buffer) -> SnapshotManifest:
        """Read :meth:`to_json`."""
        fields = json.loads(text if isinstance(text, str) else bytes(text))
        return cls(**(fields | {"ds": date.fromisoformat(fields["ds"])}))

    def without(self, key: bytes, value: Buffer) -> SnapshotManifest:
        """This manifest after one of its rows was deleted."""
        checksum = Checksum.parse(self.checksum)
        checksum.discard(key, value)
        return dataclasses.replace(
            self, row_count=self.row_count - 1, checksum=str(checksum), n_erased=self.n_erased + 1
        )


@dataclass(frozen=True)
class Pointer:
    """Which versions a store keeps.

    Attributes:
        live: Version that readers see.
        previous: Version that was live before, kept for an instant switch back.
        sequence: Number of the switch that wrote this pointer. The number grows with every switch, rollbacks included.
    """

    live: str | None = None
    previous: str | None = None
    sequence: int = 0

    @property
    def kept(self) -> frozenset[str]:
        """The versions that must not be removed."""
        return frozenset(version for version in (self.live, self.previous) if version is not None)

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: Buffer | None) -> Pointer:
        """Read :meth:`to_json`; None is the pointer of a store to which nothing was published."""
        return cls() if text is None else cls(**json.loads(bytes(text)))


@dataclass(frozen=True)
class Switch:
    """One entry of a store's journal: at ``sequence``, ``manifest`` went live by ``action``."""

    sequence: int
    action: str
    manifest: SnapshotManifest

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        entry: dict[str, Any] = {"sequence": self.sequence, "action": self.action, "manifest": self.manifest.to_json()}
        return json.dumps(entry, sort_keys=True)

    @classmethod
    def from_json(cls, text: Buffer) -> Switch:
        """Read :meth:`to_json`."""
        fields = json.loads(bytes(text))
        return cls(fields["sequence"], fields["action"], SnapshotManifest.from_json(fields["manifest"]))
