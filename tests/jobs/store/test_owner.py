"""A store belongs to one deployment; a second one is refused before anything changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.commands.live.rollback import roll_back
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.store.opening import check_store, open_store
from jobs.store.publish import delete_user, publish, rollback
from store_kit import DAY_ONE, free_port, marked_source


@pytest.fixture(params=["lmdb", "redis"])
def ours(request: pytest.FixtureRequest, deployment_file: Path, tmp_path: Path) -> Deployment:
    environ = {"LTE_PUBLISH__STORE": request.param, "LTE_RANKER__ENABLED": "false"}
    if request.param == "redis":
        port = request.getfixturevalue("redis_port")
        environ["LTE_PUBLISH__REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        environ["LTE_PUBLISH__REDIS_PREFIX"] = tmp_path.name
    return load_deployment(deployment_file, environ=environ)


def test_a_second_deployment_is_refused_everywhere(ours: Deployment) -> None:
    theirs = replace(ours, deployment=replace(ours.deployment, name="other"))
    for each in (ours, theirs):
        assert check_store(each) is None  # nothing was published: the store is free, and looking does not mark it
    store, foreign = open_store(ours), open_store(theirs)
    assert store.owner() is None
    for users in (20, 30):
        publish(store, marked_source(1, users=users), force=True)
    assert store.owner() == "test"
    before = store.pointer()
    wanted = (
        r"(paths\.online_store|publish\.redis_prefix) = .* of deployment 'test', not of 'other'; .*delete .*deployment"
    )
    for attempt in (
        lambda: publish(foreign, marked_source(2, ds=DAY_ONE), force=True),
        lambda: rollback(foreign),
        lambda: delete_user(foreign, "u1"),
        lambda: roll_back(theirs, force=True),
        lambda: check_store(theirs),
    ):
        with pytest.raises(ConfigError, match=wanted):
            attempt()
    assert store.pointer() == before
    rollback(store)
    assert check_store(ours) is None
    for opened in (store, foreign):
        opened.close()


def test_a_server_that_does_not_answer_is_no_wrong_configuration(deployment_file: Path) -> None:
    environ = {"LTE_PUBLISH__STORE": "redis", "LTE_PUBLISH__REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    assert "does not answer" in str(check_store(load_deployment(deployment_file, environ=environ)))
