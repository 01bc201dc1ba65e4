#!/usr/bin/env bash
# `make airflow`: scheduler, DAG processor, API server and UI of one deployment, on loopback, until Ctrl-C.
# Not `airflow standalone`: its log servers listen on all interfaces, and its parts keep running when it is killed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-}"
source "$LTE_HOME/scripts/airflow_db.sh"
with_database "$@"
url="$AIRFLOW__API__BASE_URL"

if (exec 3<>"/dev/tcp/127.0.0.1/$AIRFLOW__API__PORT") 2>/dev/null; then
  echo "make airflow: port $AIRFLOW__API__PORT is taken; choose another: make airflow PORT=8081" >&2
  exit 1
fi
lte check-config --config "$LTE_CONFIG" >/dev/null
echo "config: $LTE_CONFIG"
take_home "make airflow on port $AIRFLOW__API__PORT" || {
  echo "make airflow: this deployment's Airflow is used by: $owner. Wait for its end, or end it" >&2
  exit 1
}
# A new DAG is paused. Runs of a paused DAG stay queued, also backfills.
prepare_airflow "dags reserialize" "dags unpause --yes lte_daily"

set -m # every part has a process group of its own, so that stop_part reaches all of its processes
parts=()
start_part() {
  local name="$1"
  shift
  "$@" >"$AIRFLOW_HOME/$name.log" 2>&1 </dev/null &
  parts+=($!)
}
# Airflow's own program: the database is up as long as this script runs.
program="$(dirname "$(command -v python)")/airflow"
private() { (umask 077 && exec "$@"); }
stop_parts() {
  trap - EXIT
  trap '' INT TERM
  rm -f "$AIRFLOW_HOME/url"
  echo "airflow: stopping; a running job is ended, its task fails"
  # The scheduler stops first, because its tasks report their end to the API server.
  for ((part = ${#parts[@]} - 1; part >= 0; part--)); do stop_part "${parts[part]}"; done
}
trap stop_parts EXIT
trap 'exit 0' INT TERM

echo "airflow: starting; logs in $AIRFLOW_HOME/{api-server,scheduler,dag-processor}.log"
# The API server writes the password of the user admin into a file.
start_part api-server private "$program" api-server
start_part dag-processor "$program" dag-processor
start_part scheduler "$program" scheduler --skip-serve-logs

passwords="$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated"
is_up='import json, sys, urllib.request as u
health = json.load(u.urlopen(sys.argv[1] + "/api/v2/monitor/health", timeout=5))
sys.exit(any(health[part]["status"] != "healthy" for part in ("metadatabase", "scheduler", "dag_processor")))'
until [ -s "$passwords" ] && python -c "$is_up" "$url" 2>/dev/null; do
  for pid in "${parts[@]}"; do
    kill -0 "$pid" 2>/dev/null || { echo "airflow: a part stopped:" >&2; tail -n 15 "$AIRFLOW_HOME"/*-*.log >&2; exit 1; }
  done
  sleep 1
done
echo "$url" >"$AIRFLOW_HOME/url"
week_before "${LTE_LAST_DAY:-yesterday}"
cat <<END

Airflow is ready: $url   user admin, password $(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["admin"])' "$passwords")
In a second shell:
  source scripts/env.sh${1:+ $1}
  make run${1:+ CONFIG=$1}${LTE_LAST_DAY:+ DS=$LTE_LAST_DAY}    the last two days, through this scheduler
  airflow backfill create --dag-id lte_daily --from-date $from --to-date $to
  airflow backfill create --dag-id lte_daily --from-date $from --to-date $to --reprocess-behavior completed
  airflow dags list-runs lte_daily
Ctrl-C stops it.
END
wait -n "${parts[@]}" || true
echo "airflow: a part stopped by itself; see $AIRFLOW_HOME/*.log" >&2
exit 1
