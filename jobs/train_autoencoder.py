"""Train the autoencoder on the histories of ds: interactions -> user_histories -> a bundle (ADR 0007).

Starts from yesterday's bundle if there is one in the same basis. After a kill, it resumes from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.basis.basis import configured_basis
from jobs.lake.day import BasisDay
from jobs.lake.lake import open_lake
from jobs.runtime.day import AUTOENCODER_JOB
from jobs.runtime.entry import is_off, run_job, say
from jobs.runtime.flags import parse_config

JOB = AUTOENCODER_JOB


def main(argv: Sequence[str] | None = None) -> None:
    """Write the histories of ``--ds``, train on them and save the bundle."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "autoencoder", enabled=config.deployment.autoencoder.enabled):
        return
    # After the check, so that a task that is turned off does not load torch: seconds, and hundreds of megabytes.
    from jobs.autoencoder.histories import write_histories
    from jobs.autoencoder.training import NoKnownItemError, train
    from lte_models.training.trainer import leave_a_core_free

    leave_a_core_free()
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        day = BasisDay(lake, config.deployment, config.ds, basis_version)
        write_histories(day)
        try:
            metrics = train(day)
        except NoKnownItemError as error:
            # The window of a young shop lies before the shop's first day. An operator cannot change this: no failure.
            say(JOB, f"{error}; embed_users writes the uniform averages")
            metrics = {"n_epochs": 0.0}
        lake.record_metrics(config.ds, JOB, metrics)


if __name__ == "__main__":
    run_job(main)
