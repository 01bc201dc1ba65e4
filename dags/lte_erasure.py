"""# Users who ask to be forgotten, erased every day.

`lte erase --requests` erases the users whom table `erasure_requests` names (columns `user_id`, `requested_ts`; any
Delta writer can append to the table). An erasure takes the user out of the online store first. Then it takes the user
out of all tables and their history, staged copies, reports and Data Docs. The request of the user is deleted too.

**What is kept**: one row per user in table `erasures`, with a salted hash and no id. Ingest keeps the user out from
then on, also where old landing files hold the user. `lte erase --audit` lists the erasures, and for each erasure
the models that still know the user. A model forgets the user when it is trained again.

**The task's log names no user.** The log says how many users were erased, and what was deleted from tables and files.

A new DAG is paused: `airflow dags unpause lte_erasure` starts it.

The run takes a slot of the pool `lte_heavy` and the lease of the lake, so no other job writes at the same time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable
from tasks import ONE_RUN_AT_A_TIME, job_task

with DAG(
    "lte_erasure",
    # At noon, because the daily run starts at midnight and an erasure waits for the lease of the lake.
    schedule=CronDataIntervalTimetable("0 12 * * *", timezone="UTC"),
    dagrun_timeout=timedelta(days=1),
    doc_md=__doc__,
    **ONE_RUN_AT_A_TIME,
    tags=["lte", "erasure"],
):
    job_task("erase_requested", "cli erase", "--requests")
