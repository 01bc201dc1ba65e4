"""What the DAGs of this folder share: how a task starts a job, and the limits that every job runs under.

Airflow puts the DAGs folder on the path, so a DAG file imports this one by its bare name. ``.airflowignore`` keeps
Airflow from looking for DAGs here.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator

PROJECT = Path(__file__).resolve().parents[1]

JOB_LIMITS: dict[str, Any] = {
    "owner": "lte",
    "pool": "lte_heavy",
    "retries": int(os.environ.get("LTE_RETRIES", "2")),
    "retry_delay": timedelta(minutes=1),
    "execution_timeout": timedelta(hours=6),
    # Two runs never write the same table or folder at the same time, however many slots the pool has.
    "max_active_tis_per_dag": 1,
}


# Of every DAG: a past interval starts no run by itself.
ONE_RUN_AT_A_TIME: dict[str, Any] = {
    "start_date": datetime(2000, 1, 1, tzinfo=UTC),
    "catchup": False,
    "max_active_runs": 1,
    "default_args": JOB_LIMITS,
}


def job_task(task_id: str, job: str, *flags: str, **settings: Any) -> BashOperator:
    """Wire a job as a task: a process group of its own, whose output is the task's log.

    Args:
        task_id: Name of the task in its DAG.
        job: Name of the module in ``jobs/``, and the job's own positional arguments.
        flags: Flags after ``--config``, templates of Airflow among them.
        settings: Further arguments of the operator.

    Returns:
        The task; it belongs to the DAG whose context is open.
    """
    command = [
        # `exec` leaves no shell between Airflow and the job, so that killing the task kills the job.
        # `-P` keeps the working directory off the import path: a file there must not replace a package.
        f'exec "${{LTE_PYTHON:-{sys.executable}}}" -P -m jobs.{job}',
        '--config "${LTE_CONFIG:?names the TOML file of the deployment and is not set}"',
        *flags,
    ]
    return BashOperator(
        task_id=task_id,
        bash_command=" ".join(command),
        cwd=str(PROJECT),
        # A job waits for another run of the same lake, or for a process that its own earlier try left. Then it fails.
        env={"PYTHONUNBUFFERED": "1", "LTE_WAIT_SECONDS": os.environ.get("LTE_WAIT_SECONDS", "3600")},
        append_env=True,
        skip_on_exit_code=None,
        **settings,
    )
