"""The HTTP side of the service: routes, limits, token, Prometheus metrics."""

from __future__ import annotations

import secrets
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from jobs.ranker.judging.live import lte_of_ranker
from jobs.registry.bundles import ModelError
from jobs.serving.live import LiveService, Sent
from jobs.store.rows import BadRowError
from jobs.store.snapshot import OnlineStoreError
from lte_models.training.manifest import BundleError
from schemas import MAX_ID_BYTES

MAX_BODY_BYTES = 512 * 1024
MAX_SENT = 2_000
MAX_K = 500
OPEN = ("/healthz",)
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES)]
UserId = Annotated[str, Path(min_length=1, max_length=MAX_ID_BYTES, description="user_id")]
K = Annotated[int, Query(ge=1, le=MAX_K, description="number of items")]


class Interaction(BaseModel):
    """One interaction of a request."""

    model_config = ConfigDict(extra="forbid")
    item_id: Id
    type: Id
    ts: AwareDatetime


class Session(BaseModel):
    """Body of a request: the user's interactions, in the place of those of the lake."""

    model_config = ConfigDict(extra="forbid")
    interactions: Annotated[list[Interaction], Field(max_length=MAX_SENT)]

    def sent(self) -> list[Sent]:
        """The same as plain values."""
        return [(each.item_id, each.type, each.ts) for each in self.interactions]


class Metrics:
    """Counters in Prometheus' text format; several threads may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._users: Counter[str] = Counter()
        self._buckets: Counter[int] = Counter()
        self._seconds = 0.0

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        with self._lock:
            self._requests[route, status] += 1
            self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self._seconds += seconds

    def count_user(self, user: str) -> None:
        """Count one answer by what is known of the user."""
        with self._lock:
            self._users[user] += 1

    def text(self, n_loads: int) -> str:
        """All counters."""
        with self._lock:
            lines = ["# TYPE lte_requests_total counter"]
            lines += [f'lte_requests_total{{route="{r}",status="{s}"}} {n}' for (r, s), n in self._requests.items()]
            lines += ["# TYPE lte_answers_total counter"]
            lines += [f'lte_answers_total{{user="{user}"}} {n}' for user, n in self._users.items()]
            lines += ["# TYPE lte_loads_total counter", f"lte_loads_total {n_loads}"]
            return "\n".join([*lines, *self._histogram(), ""])

    def _histogram(self) -> list[str]:
        lines, total = ["# TYPE lte_request_seconds histogram"], 0
        for place, edge in enumerate((*BUCKETS_S, "+Inf")):
            total += self._buckets[place]
            lines.append(f'lte_request_seconds_bucket{{le="{edge}"}} {total}')
        return [*lines, f"lte_request_seconds_sum {self._seconds}", f"lte_request_seconds_count {total}"]


def service_app(service: LiveService, token: str = "") -> FastAPI:
    """The application.

    Args:
        service: Answers.
        token: Bearer token that each request but ``/healthz`` must carry; empty for none.
    """
    app, metrics = FastAPI(title="Long-Term Embeddings", version="1"), Metrics()
    _add_user_routes(app, service, metrics)
    _add_operator_routes(app, service, metrics)
    _add_errors(app)

    @app.middleware("http")
    async def guarded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        refused = _refusal(request, token) or await _too_large(request)
        response = refused or await go_on(request)
        route = request.scope.get("route")
        # the template, not the path: a path names a user
        metrics.count(getattr(route, "path", "none"), response.status_code, time.perf_counter() - started)
        return response

    return app


def _refusal(request: Request, token: str) -> Response | None:
    sent = request.headers.get("authorization", "")
    if not token or request.url.path in OPEN or secrets.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        return None
    return JSONResponse(
        {"error": "expected the header Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
    )


async def _too_large(request: Request) -> Response | None:
    """Refuse a large body before it is parsed; a body without a length is counted while it arrives."""
    error = JSONResponse({"error": f"body: expected at most {MAX_BODY_BYTES} bytes"}, 413, {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        return error
    if not declared and "transfer-encoding" in request.headers:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return error
        request._body = bytes(body)  # where Starlette keeps a body that was read
    return None


def _add_user_routes(app: FastAPI, service: LiveService, metrics: Metrics) -> None:
    def answer(user_id: str, k: int, session: Session | None) -> dict[str, Any]:
        found = service.answer(user_id, k, session.sent() if session else None)
        metrics.count_user(found["user"])
        return found

    @app.get("/v1/users/{user_id}/recommendations")
    def recommendations(user_id: UserId, k: K = 10) -> dict[str, Any]:
        """The user's best items; the interactions come from the lake."""
        return answer(user_id, k, None)

    @app.post("/v1/users/{user_id}/recommendations")
    def session_recommendations(user_id: UserId, session: Session, k: K = 10) -> dict[str, Any]:
        """The user's best items; the interactions come with the request."""
        return answer(user_id, k, session)

    @app.get("/v1/users/{user_id}/lte")
    def lte(user_id: UserId) -> Any:
        """The user's live LTE."""
        stored = service.reader.get(user_id)
        if stored is None:
            return JSONResponse({"error": "the live snapshot has no LTE of this user", "user": "unknown"}, 404)
        names = ("ds", "basis_version", "lte_window", "method", "version")
        parts = {name: getattr(stored.manifest, name) for name in names}
        return parts | {"user_id": user_id, "n_items": stored.n_items, "embedding": stored.embedding.tolist()}


def _add_operator_routes(app: FastAPI, service: LiveService, metrics: Metrics) -> None:
    @app.get("/v1/live")
    def live() -> dict[str, Any]:
        """What answers: snapshot, ranker and items."""
        served, kind = service.served, lte_of_ranker(service.served.manifest)
        ranker = {"ds": served.manifest.ds, "weights_sha256": served.manifest.weights_sha256}
        ranker |= {"basis_version": served.manifest.basis_version}
        items = {"ds": str(served.ds), "n_items": len(served.shop.item_ids)}
        reads = kind._asdict() if kind else None
        return {"snapshot": asdict(service.reader.manifest()), "ranker": ranker | {"reads": reads}, "items": items}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the store answers; 503 where it does not."""
        return {"status": "ok", "ds": str(service.reader.manifest().ds)}

    @app.get("/metrics", response_class=PlainTextResponse)
    def prometheus() -> str:
        """Counters for Prometheus."""
        return metrics.text(service.n_loads)


def _add_errors(app: FastAPI) -> None:
    def unavailable(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 503)

    def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    for kind in (OnlineStoreError, ModelError, BundleError):
        app.add_exception_handler(kind, unavailable)
    app.add_exception_handler(BadRowError, refused)
