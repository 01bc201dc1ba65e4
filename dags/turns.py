"""The first task of a day: it refuses a run that has no data day, and lets one day run after the other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException


class DayMayStart(BaseSensorOperator):
    """Waits until no other day of this DAG runs.

    A backfill starts up to ten days at once, and a day that is triggered by hand starts beside them. Each day reads
    the rows of its own ``ingest`` and of the ones before. So no ``ingest`` may run between two tasks of another
    day.

    The sensor looks every few seconds and holds no worker in between. ``max_active_tis_per_dag`` must be 1: then no two
    days look at the same moment, and of two that wait the earlier one goes first.
    """

    def __init__(self, *, task_id: str, last_task: str, last_day: str | None, **settings: Any) -> None:
        """Wire the sensor.

        Args:
            task_id: Name of the task.
            last_task: The task whose state says that a day is over.
            last_day: Last data day of a data set that has ended, YYYY-MM-DD; None for a data set that continues.
            settings: Further arguments of the operator.
        """
        super().__init__(task_id=task_id, mode="reschedule", poke_interval=15, **settings)
        self.last_task = last_task
        self.last_day = last_day

    def poke(self, context: Mapping[str, Any]) -> bool:
        """Tell whether the day of this run may start.

        Raises:
            AirflowFailException: The run has no data day. The task is not tried again.
        """
        run, task = context["dag_run"], context["ti"]
        self._check_day(run)
        if task.get_previous_dagrun(state="running") is not None:
            self.log.info("ds=%s waits: an earlier day is running", context["ds"])
            return False
        states = task.get_task_states(dag_id=run.dag_id, task_ids=[self.task_id, self.last_task])
        others = [other for other, state in states.items() if other != run.run_id and self._has_begun(state)]
        if others:
            self.log.info("ds=%s waits: %s is running", context["ds"], ", ".join(others))
        return not others

    def _has_begun(self, state: Mapping[str, str | None]) -> bool:
        """Tell whether a run is between its first and its last task; a run that ended has a state for its last task."""
        return state.get(self.task_id) == "success" and not state.get(self.last_task)

    def _check_day(self, run: Any) -> None:
        if run.logical_date is None:
            day = self.last_day or f"{run.run_after - timedelta(days=1):%Y-%m-%d}"
            raise AirflowFailException(
                f"expected a run with a data day, got one without a date: airflow dags trigger {run.dag_id} -l {day}"
            )
