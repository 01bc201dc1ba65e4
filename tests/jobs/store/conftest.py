"""A Redis server that the tests of one file share."""

from collections.abc import Iterator

import pytest

from store_kit import free_port, redis_server


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    with redis_server(tmp_path_factory.mktemp("redis"), port):
        yield port
