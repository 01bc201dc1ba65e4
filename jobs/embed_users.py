"""Encode the histories of ds with its autoencoder: user_histories -> user_lte, method autoencoder (paper, section 9).

Users without history get the cold-start vector. A user with a history gets the uniform average if the autoencoder knows
none of the user's items; both vectors lie in the same space. If the basis knows none of these items either, the uniform
average is the zero vector. In a shop's first days no user has a known item in the window. Then there is no autoencoder,
and all users get the uniform average, which is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from pyspark.sql import functions as F

from jobs.basis.basis import configured_basis
from jobs.lake.lake import open_lake
from jobs.registry.bundles import bundle_folder
from jobs.runtime.entry import is_off, run_job
from jobs.runtime.flags import parse_config
from schemas import USER_LTE

JOB = "embed_users"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the autoencoder's slice of user_lte of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "autoencoder", enabled=config.deployment.autoencoder.enabled):
        return
    # After the check, so that a task that is turned off does not load torch: seconds, and hundreds of megabytes.
    from jobs.autoencoder.encoding import METHOD, autoencoder_ltes, encode_task, knows_an_item

    window = config.deployment.autoencoder.window
    basis_version = configured_basis(config.deployment)
    folder = bundle_folder(config.deployment, METHOD, config.ds)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        is_trained = knows_an_item(lake, config.ds, window)
        task = encode_task(lake, folder, basis_version, window) if is_trained else None
        rows = autoencoder_ltes(lake, task, config.ds, window)
        where: dict[str, str | date] = {"ds": config.ds, "method": METHOD, "lte_window": window}
        n_rows = lake.replace(rows.withColumn("basis_version", F.lit(basis_version)), USER_LTE, where)
        lake.record_metrics(config.ds, JOB, {"n_users": float(n_rows)})


if __name__ == "__main__":
    run_job(main)
