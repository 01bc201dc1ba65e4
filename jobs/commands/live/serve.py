"""Serve recommendations over HTTP until a signal ends the process."""

from __future__ import annotations

import ipaddress
import os

import torch
import uvicorn

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.runtime.progress import say
from jobs.serving.app import service_app
from jobs.serving.live import JOB, LiveService

TOKEN = "LTE_SERVE_TOKEN"  # noqa: S105  # the name of the variable


def serve(deployment: Deployment, host: str, port: int) -> None:
    """Load the live ranker, then answer.

    Args:
        deployment: Whose ranker and store.
        host: Address to listen on.
        port: Port; 0 for a free one, which is told on standard error.

    Raises:
        ConfigError: The address is not of this machine only, and there is no token.
        jobs.registry.bundles.ModelError: No ranker is live, or it reads other LTEs than those that are live.
        jobs.store.snapshot.OnlineStoreError: The store failed, or nothing was published.
    """
    token = os.environ.get(TOKEN, "")
    if not token and not is_loopback(host):
        raise ConfigError(f"--host {host}: others can reach it, so set {TOKEN} to a token that they must send")
    # Requests run side by side: more threads for one request would only wait for each other.
    torch.set_num_threads(1)
    service = LiveService(deployment)
    # The access log would name users: a path holds an id.
    config = uvicorn.Config(service_app(service, token), host, port, access_log=False, log_level="warning")
    try:
        _Server(config).run()
    finally:
        service.close()


class _Server(uvicorn.Server):
    """A server that says where it listens."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for each in server.sockets:
                say(JOB, f"listening on {each.getsockname()[0]}:{each.getsockname()[1]}")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
