# shellcheck shell=bash
# Prepares this deployment's Airflow: the metadata database, the pool of heavy jobs, and the lock of the Airflow home.
# Sourced after env.sh.

AIRFLOW_LOG="$AIRFLOW_HOME/prepare.log"

# Starts the calling script again from its first line; the metadata database is up until the script ends.
with_database() {
  [ "${AIRFLOW_DB_HELD:-}" = "$AIRFLOW_HOME" ] && return
  export AIRFLOW_DB_HELD="$AIRFLOW_HOME"
  exec python -P "$LTE_HOME/scripts/with_database.py" bash "$0" "$@"
}

# One `make run` or `make airflow` per home. Fails if another one has the home; then $owner says which. The kernel
# drops the lock with the last process that has it. So a scheduler whose script was killed still has its home.
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

# Files that Airflow writes hold passwords and keys, so only this user may read them. Files of the jobs are for others too.
quietly() {
  (umask 077 && "$@") >>"$AIRFLOW_LOG" 2>&1 9>&- || {
    echo "failed: $*; the end of $AIRFLOW_LOG:" >&2
    tail -n 20 "$AIRFLOW_LOG" >&2
    return 1
  }
}

# The arguments are further commands of Airflow, which run after those that every use needs.
prepare_airflow() {
  : >"$AIRFLOW_LOG"
  echo "airflow: $AIRFLOW_DB_KIND as metadata database, in $AIRFLOW_HOME"
  quietly python "$LTE_HOME/scripts/airflow_commands.py" \
    "db migrate" "pools set lte_heavy 1 'one heavy job at a time'" "$@"
}

# Ends a process group: Airflow needs some seconds to end its tasks, and what ignores the signal is killed.
stop_part() {
  kill -TERM -- "-$1" 2>/dev/null || return 0
  for _ in $(seq 60); do
    kill -0 -- "-$1" 2>/dev/null || break
    sleep 0.5
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}
