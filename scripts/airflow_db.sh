# shellcheck shell=bash
# Prepares this deployment's Airflow: metadata database, the pool of heavy jobs; and says who may use it.
# Sourced after env.sh.

AIRFLOW_LOG="$AIRFLOW_HOME/prepare.log"

# Begins the calling script anew, with the metadata database up until it ends.
with_database() {
  [ "${AIRFLOW_DB_HELD:-}" = "$AIRFLOW_HOME" ] && return
  export AIRFLOW_DB_HELD="$AIRFLOW_HOME"
  exec python -P "$LTE_HOME/scripts/with_database.py" bash "$0" "$@"
}

# One `make run` or `make airflow` for each home. Fails where another one has it, and then $owner says which. The kernel
# drops the lock with the last process that has it, so a scheduler whose script was killed still has its home.
take_home() {
  mkdir -p -m 700 "$AIRFLOW_HOME"
  exec 9>>"$AIRFLOW_HOME/owner"
  if flock -n 9; then
    echo "$1, process $$, since $(date -u '+%F %T') UTC" >"$AIRFLOW_HOME/owner"
  else
    owner="$(cat "$AIRFLOW_HOME/owner")"
    exec 9>&-
    return 1
  fi
}

# A week that ends before the two days of `make run`, for the examples on the screen.
week_before() {
  to="$(date -u -d "$1 - 2 days" +%F)"
  from="$(date -u -d "$to - 6 days" +%F)"
}

# What Airflow writes holds passwords and keys, so it is for this user alone. Not for the jobs: their files are for others.
quietly() {
  (umask 077 && "$@") >>"$AIRFLOW_LOG" 2>&1 9>&- || {
    echo "failed: $*; the end of $AIRFLOW_LOG:" >&2
    tail -n 20 "$AIRFLOW_LOG" >&2
    return 1
  }
}

# Further commands of Airflow may follow those that every use needs.
prepare_airflow() {
  : >"$AIRFLOW_LOG"
  echo "airflow: $AIRFLOW_DB_KIND as metadata database, in $AIRFLOW_HOME"
  quietly python "$LTE_HOME/scripts/airflow_commands.py" \
    "db migrate" "pools set lte_heavy 1 'one heavy job at a time'" "$@"
}
