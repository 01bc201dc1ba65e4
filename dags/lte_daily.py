"""# Long-Term Embeddings, one data day per run.

`day_may_start` lets one day run after the other. The LTEs: `ingest >> embed_items >> compute_lte >>
train_autoencoder >> embed_users >> compute_drift >> validate >> publish_snapshot`. The ranker beside them:
`embed_items >> build_examples >> train_ranker`, and after both branches `evaluate_ranker`. A failure of the ranker's
branch does not stop the LTEs from being published. Then `build_report` runs, even after a failure. Then `day_is_done`
runs. It succeeds only if all other tasks succeeded, so it decides the colour of the run.

**Day.** `ds` is the data day: the run of 2017-11-07 starts when that day is over, at 2017-11-08 00:00 UTC.
`airflow dags trigger lte_daily -l 2017-11-07` and `airflow backfill create --dag-id lte_daily --from-date 2017-11-01
--to-date 2017-11-07` name data days too. A run that is triggered without a date is refused by `day_may_start`.

**Settings**, all read when a task runs, except the last three, which are read when this file is parsed:

| variable | meaning |
|---|---|
| `LTE_CONFIG` | the deployment's TOML file; required |
| `LTE_<SECTION>__<KEY>` | overrides one setting of that file |
| `LTE_PYTHON` | the interpreter of the jobs; default: Airflow's own |
| `LTE_RETRIES` | tries after the first one; default 2 |
| `LTE_WAIT_SECONDS` | how long a job waits for another run of the same lake; default 3600 |
| `LTE_LAST_DAY` | last data day of a data set that has ended, such as the sample: no runs are scheduled after it |

**Pool.** Every job takes a slot of the pool `lte_heavy`. Airflow does not queue a task whose pool does not exist: it
shows a warning on the DAG's page and waits. `airflow pools set lte_heavy 1 "one heavy job at a time"` creates the
pool. `make airflow` and the Compose file also create it.

**One day after the other.** A backfill starts up to ten days at once. Each of them waits in `day_may_start` until no
other day runs. So a day reads the files that landed for it and for the days before, and its drift finds the LTEs of the
days before.

**Backfills change nothing that is live**: `publish_snapshot` and `evaluate_ranker` are told the run type. A backfill of
days that have run does nothing, although Airflow prints "Created backfill Dag run" for each;
`--reprocess-behavior completed` runs them again.

A job that exits with 1 names the gate or the input that failed. A job that is cleared reads its inputs again and
replaces only the rows of its own day.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, TriggerRule, chain
from tasks import ONE_RUN_AT_A_TIME, job_task
from turns import DayMayStart

LAST_DAY = os.environ.get("LTE_LAST_DAY")


def job(name: str, *flags: str, **settings: Any) -> BashOperator:
    """Wire ``jobs/<name>.py`` as the task of that name, for the data day of the run."""
    return job_task(name, name, "--ds {{ ds }}", *flags, **settings)


with DAG(
    "lte_daily",
    # A plain cron string would make ds the day of the trigger, whose data is not complete.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    # The end date also ends the tasks: Airflow 3.3.2 marks a run of a later day as a success without a task.
    # `make run` and the `airflow` of scripts/env.sh refuse such a day.
    end_date=datetime.fromisoformat(LAST_DAY).replace(tzinfo=UTC) if LAST_DAY else None,
    # A run that cannot continue, for example because its pool does not exist, must not block the later days for ever.
    dagrun_timeout=timedelta(days=2),
    doc_md=__doc__,
    **ONE_RUN_AT_A_TIME,
    tags=["lte", "daily"],
):
    # Not in the pool of the heavy jobs: a day that waits must not take the slot of the day that it waits for.
    day_may_start = DayMayStart(
        task_id="day_may_start", last_task="day_is_done", last_day=LAST_DAY, pool="default_pool"
    )
    ingest, embed_items, train_ranker = job("ingest"), job("embed_items"), job("train_ranker")
    run_type = ("--run-type", "{{ dag_run.run_type.value }}")
    publish, evaluate = job("publish_snapshot", *run_type), job("evaluate_ranker", *run_type)
    # The states of the other tasks: tables alone cannot tell a failed task from a task that never started.
    states = "--states '{{ ti.get_task_states(dag_id=dag.dag_id, run_ids=[run_id])[run_id] | tojson }}'"
    # Runs also after a failure, but not if `day_may_start` refused the run: such a run has no day to report on.
    report = job("build_report", states, trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS)
    # Not as_teardown(on_failure_fail_dagrun=True): under it Airflow 3.3.2 marks a run whose gate failed as a success.
    day_is_done = EmptyOperator(task_id="day_is_done")

    learned = (job("train_autoencoder"), job("embed_users"))
    chain(day_may_start, ingest, embed_items, job("compute_lte"), *learned)
    chain(learned[-1], job("compute_drift"), job("validate"), publish, evaluate)
    chain(embed_items, job("build_examples"), train_ranker, evaluate)
    [day_may_start, publish, train_ranker, evaluate] >> report
    [publish, evaluate, report] >> day_is_done
