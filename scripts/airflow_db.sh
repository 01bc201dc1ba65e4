# shellcheck shell=bash
# Prepares this clone's Airflow: metadata database, the pool of heavy jobs, the DAGs known and ready to run.
# Sourced after env.sh.

AIRFLOW_LOG="$AIRFLOW_HOME/prepare.log"

quietly() {
  "$@" >>"$AIRFLOW_LOG" 2>&1 || {
    echo "failed: $*; the end of $AIRFLOW_LOG:" >&2
    tail -n 20 "$AIRFLOW_LOG" >&2
    return 1
  }
}

prepare_airflow() {
  mkdir -p "$AIRFLOW_HOME"
  : >"$AIRFLOW_LOG"
  echo "airflow: metadata database $AIRFLOW_HOME/airflow.db"
  quietly airflow db migrate
  quietly airflow pools set lte_heavy 1 "one heavy job at a time"
}
