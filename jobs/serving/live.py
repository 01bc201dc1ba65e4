"""Answers of the live ranker, which follow each publish and rollback without a restart."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from jobs.config.sections import Deployment
from jobs.lake.reader import lake_reader
from jobs.ranker.judging.live import LiveRanker, live_ranker
from jobs.registry.bundles import ModelError
from jobs.runtime.progress import say
from jobs.serving.history import sent_events
from jobs.serving.ranker import ServedRanker, events_of, example_of, ranked, served_ranker
from jobs.store.opening import open_store
from jobs.store.reader import EmbeddingBatch, SnapshotReader

JOB = "serve"
Sent = tuple[str, str, datetime]  # item id, interaction type, moment

FALLBACKS = {
    "known": None,
    "cold": "no LTE: the ranker reads the user's recent interactions only",
    "unknown": "no LTE and no interactions: the items for somebody without a history",
}


@dataclass(frozen=True)
class Loaded:
    """A ranker and the pointer that it was loaded for."""

    pointer: LiveRanker | None
    served: ServedRanker


class LiveService:
    """Serves the live ranker; several threads may call it.

    A request takes the ranker that is loaded, and one read of the store. If the ranker's pointer or the day of the
    snapshot has changed since the load, one thread loads the new pair in the background. The old ranker answers until
    then, but only with LTEs of the basis, window and method that it was trained on.
    """

    def __init__(self, deployment: Deployment) -> None:
        """Load the live ranker.

        Raises:
            ModelError: No ranker is live, or it reads other LTEs than those that are live.
            jobs.store.snapshot.OnlineStoreError: The store failed, or nothing was published.
        """
        self._deployment, self._lake = deployment, lake_reader(deployment)
        self.reader = SnapshotReader(open_store(deployment))
        self._loading = threading.Lock()
        self._loader: threading.Thread | None = None
        self.n_loads = 0
        self._loaded = self._load(self.reader.manifest().ds)

    def close(self) -> None:
        """Wait for a load in the background, and close the store."""
        if self._loader:
            self._loader.join()
        self.reader.close()

    @property
    def served(self) -> ServedRanker:
        """The ranker that answers now."""
        return self._loaded.served

    def answer(self, user_id: str, k: int, sent: Iterable[Sent] | None = None) -> dict[str, Any]:
        """The best items of a user.

        Args:
            user_id: The user.
            k: Items wanted; at most ``served.largest_k`` are returned.
            sent: The user's interactions, in the place of those of the lake.

        Returns:
            ``user`` ("known", "cold" without an LTE, "unknown" without any history), the ``fallback`` that answered,
            days and versions of all parts, and ``items``, best first.

        Raises:
            ModelError: The ranker does not read the live LTEs, also after it was loaded again.
            jobs.store.snapshot.OnlineStoreError: The store failed.
        """
        stored = self.reader.get_many([user_id])
        sent = None if sent is None else list(sent)
        loaded = self._follow(stored.manifest.ds)
        try:
            return self._answer(loaded.served, stored, user_id, k, sent)
        except ModelError:
            # Ranker and LTEs were switched one after the other: with both new parts, the pair fits again.
            stored = self.reader.get_many([user_id])
            return self._answer(self._reload(stored.manifest.ds).served, stored, user_id, k, sent)

    def _answer(
        self, served: ServedRanker, stored: EmbeddingBatch, user_id: str, k: int, sent: list[Sent] | None
    ) -> dict[str, Any]:
        events = events_of(self._lake, served, user_id) if sent is None else sent_events(served.numbers, sent)
        batch = example_of(self._deployment, served, user_id, events)
        found = ranked(served, stored, batch, min(k, served.largest_k))
        is_cold = bool(events) or bool(stored.is_found[0])
        user = "known" if stored.n_items[0] > 0 else "cold" if is_cold else "unknown"
        return {
            "user_id": user_id,
            "user": user,
            "fallback": FALLBACKS[user],
            "ds": str(stored.manifest.ds),
            "snapshot": stored.manifest.version,
            "ranker_ds": served.manifest.ds,
            "ranker": served.manifest.weights_sha256[:12],
            "items_ds": str(served.ds),
            "items": [{"item_id": item_id, "score": score} for item_id, score in found],
        }

    def _follow(self, ds: date) -> Loaded:
        """The loaded ranker; starts a load in the background if something else is live."""
        loaded = self._loaded
        if not self._is_current(loaded, ds) and self._loading.acquire(blocking=False):
            self._loader = threading.Thread(target=self._load_in_background, args=(ds,), daemon=True)
            self._loader.start()
        return loaded

    def _is_current(self, loaded: Loaded, ds: date) -> bool:
        return loaded.served.ds == ds and loaded.pointer == live_ranker(self._deployment)

    def _load_in_background(self, ds: date) -> None:
        try:
            self._loaded = self._load(ds)
        except Exception as error:  # the old ranker goes on, and the next request tries again
            say(JOB, f"ds={ds}: the live ranker cannot be loaded, the earlier one answers: {error}")
        finally:
            self._loading.release()

    def _reload(self, ds: date) -> Loaded:
        with self._loading:
            if not self._is_current(self._loaded, ds):
                self._loaded = self._load(ds)
            return self._loaded

    def _load(self, ds: date) -> Loaded:
        # The pointer is read first: after a switch during the load it is an old one, and the next request loads again.
        pointer = live_ranker(self._deployment)
        served = served_ranker(self._lake, self._deployment, ds)
        self.n_loads += 1
        say(JOB, f"ranker of ds={served.manifest.ds}, {len(served.shop.item_ids):,} items of ds={ds}")
        return Loaded(pointer, served)
