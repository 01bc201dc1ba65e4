#!/usr/bin/env bash
# `make run`: the DAG through Airflow, for two days. The day before DS runs without models; it gives drift a day to compare
# with. Then DS runs. If `make airflow` runs for this deployment, its scheduler runs both days, with models.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-}"
source "$LTE_HOME/scripts/airflow_db.sh"
ds="${2:-${LTE_LAST_DAY:-}}"
if ! [[ "$ds" =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]] || ! date -d "$ds" >/dev/null 2>&1; then
  echo "make run: which data day? Say so: make run CONFIG=${1:-FILE} DS=2017-12-31 (got '$ds')" >&2
  exit 2
fi
if [[ -n "${LTE_LAST_DAY:-}" && "$ds" > "$LTE_LAST_DAY" ]]; then
  echo "make run: expected DS up to $LTE_LAST_DAY, the last day of this data set, got $ds: it has no data for that day" >&2
  exit 2
fi
with_database "$@"
# A person is watching: do not retry or wait for another run of the lake, but show the reason of a failure at once.
export LTE_RETRIES=0 LTE_WAIT_SECONDS="${LTE_WAIT_SECONDS:-0}"
day_before="$(date -u -d "$ds - 1 day" +%F)"
failed() {
  echo "make run: the run of $1 failed; the reason is above, the whole log in $2" >&2
  exit 1
}

run_day() {
  local day="$1" log="$AIRFLOW_HOME/run-$1.log"
  shift
  echo
  echo "==== $day: airflow dags test lte_daily $day (all of its output: $log)"
  # Its exit code does not show that a run timed out or ran no task. So show_tasks.py looks at the last task.
  # The pipeline is a process group of its own, so that a signal to this script ends every process of the day.
  set -m
  { { airflow dags test lte_daily "$day" "$@" </dev/null 2>&1 || true; } | tee "$log" |
    python "$LTE_HOME/scripts/show_tasks.py"; } &
  running=$!
  set +m
  wait "$running" || failed "$day" "$log"
  running=""
}

running=""
stop() {
  trap '' INT TERM HUP
  echo "make run: $1: the day is stopped; the same command goes on with what is done" >&2
  # The metadata database stops with this script, so nothing may use it then.
  [ -z "$running" ] || stop_part "$running"
  exit "$2"
}
trap 'stop SIGINT 130' INT
trap 'stop SIGTERM 143' TERM
trap 'stop SIGHUP 129' HUP

follow_day() {
  local day="$1"
  shift
  echo
  echo "==== $day: by the scheduler of $owner"
  python "$LTE_HOME/scripts/follow_run.py" "$day" "$@" || failed "$day" "$AIRFLOW_HOME/logs"
}

make_fashion() {
  local landing
  landing="$(lte check-config --config "$LTE_CONFIG" --json | python -c 'import json, sys; print(json.load(sys.stdin)["paths"]["landing"])')"
  [ ! -d "$landing" ] || return 0
  echo "The first run of the fashion shop takes about 13 minutes on two cores: 2 to make its data, 11 for its two days."
  echo "making the fashion shop (docs/fashion.md): lte make-fashion --out $landing"
  lte make-fashion --out "$landing"
}

run_both_days() {
  prepare_airflow
  # The day before is needed for its LTEs alone, so only DS trains models. No other day can run: this script holds the
  # home.
  local models="train_autoencoder|embed_users|build_examples|train_ranker|evaluate_ranker"
  LTE_AUTOENCODER__ENABLED=false LTE_RANKER__ENABLED=false \
    run_day "$day_before" --mark-success-pattern "$models|day_may_start"
  run_day "$ds" --mark-success-pattern day_may_start
}

started=$SECONDS
lte check-config --config "$LTE_CONFIG" >/dev/null
echo "config: $LTE_CONFIG"
is_served=""
take_home "make run" || is_served=yes
if [[ -n "$is_served" && "$owner" != "make airflow"* ]]; then
  echo "make run: this deployment's Airflow is used by: $owner. Wait for its end, or end it" >&2
  exit 1
fi
case "$LTE_CONFIG" in
  "$LTE_HOME/configs/complete_journey.toml") python -m jobs.samples.complete_journey --config "$LTE_CONFIG" ;;
  "$LTE_HOME/configs/fashion.toml") make_fashion ;;
esac
if [ -n "$is_served" ]; then
  follow_day "$day_before" --unless-done
  follow_day "$ds"
else
  run_both_days
fi

echo
echo "==== done in $((SECONDS - started)) s"
lte status --config "$LTE_CONFIG"
user="$(python "$LTE_HOME/scripts/some_user.py" "$LTE_CONFIG" "$ds")"
week_before "$ds"
cat <<END

What to try next:
  source scripts/env.sh${1:+ "$(printf '%q' "$1")"}      this clone's airflow, lte and python in your shell (or: make shell)
  lte user $user                 the live embedding of one user, and the items nearest to it
  lte run $ds            the same tasks without Airflow
  make airflow${1:+ CONFIG="$(printf '%q' "$1")"}                  scheduler and UI on this machine; then, in a second shell:
  airflow backfill create --dag-id lte_daily --from-date $from --to-date $to
  make help                     everything else
END
