"""Print one user of a data day, for the examples at the end of `make run`:  some_user.py CONFIG DS."""

from __future__ import annotations

import shlex
import sys
from datetime import date
from pathlib import Path

from jobs.config.loading import load_deployment
from jobs.lake.delta_files import arrow_batches


def some_user(config: Path, ds: date) -> str:
    """The user with the most items in the first batch of the published slice; of users with equal numbers the first id.

    Args:
        config: The deployment's file.
        ds: Data day.

    Returns:
        The user's id, or USER if the day has no users.
    """
    deployment = load_deployment(config)
    published = deployment.publish
    slice_of_day: dict[str, date | str] = {"ds": ds, "method": published.method, "lte_window": published.window}
    path = f"{deployment.paths.lake}/user_lte"
    for batch in arrow_batches(path, columns=["user_id", "n_items"], where=slice_of_day):
        if batch.num_rows:
            return str(min(batch.to_pylist(), key=lambda row: (-row["n_items"], row["user_id"]))["user_id"])
    return "USER"


if __name__ == "__main__":
    print(shlex.quote(some_user(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]))))
