"""# Can an earlier ranker read today's LTEs? A drill, every week.

`lte rollback --drill` takes the rankers of `drift.offsets_days` days ago (1, 5 and 10), checks basis, window, method
and half-life against the live LTEs, and scores the newest day with each of them. The losses of NDCG against the live
ranker go to table `metrics` (job `rollback_drill`). The task fails if a loss is above `gates.max_drill_loss`.

**The drill changes nothing that is live.** It reads all rows of the live snapshot before and after, and compares the
checksums. It fails if LTEs, snapshot or ranker changed in between.

A new DAG is paused: `airflow dags unpause lte_rollback_drill` starts it.

The run takes a slot of the pool `lte_heavy` and the lease of the lake, so no other job writes at the same time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable
from tasks import ONE_RUN_AT_A_TIME, job_task

with DAG(
    "lte_rollback_drill",
    # On Monday afternoon, after the daily run and the erasures.
    schedule=CronDataIntervalTimetable("0 15 * * 1", timezone="UTC"),
    dagrun_timeout=timedelta(days=1),
    doc_md=__doc__,
    **ONE_RUN_AT_A_TIME,
    tags=["lte", "drill"],
):
    job_task("rollback_drill", "cli rollback", "--drill")
