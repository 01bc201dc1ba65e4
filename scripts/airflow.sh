#!/usr/bin/env bash
# `make airflow`: scheduler, DAG processor, API server and UI of this clone, on loopback, until Ctrl-C.
# Not `airflow standalone`: its log servers listen on all interfaces, and it leaves its parts behind when it is killed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-}"
source "$LTE_HOME/scripts/airflow_db.sh"
url="$AIRFLOW__API__BASE_URL"

if (exec 3<>"/dev/tcp/127.0.0.1/$AIRFLOW__API__PORT") 2>/dev/null; then
  echo "make airflow: port $AIRFLOW__API__PORT is taken; choose another: make airflow PORT=8081" >&2
  exit 1
fi
lte check-config --config "$LTE_CONFIG" >/dev/null
echo "config: $LTE_CONFIG"
prepare_airflow
quietly airflow dags reserialize
# A new DAG is paused, and the runs of a paused DAG, backfills too, stay queued.
quietly airflow dags unpause --yes lte_daily

set -m # every part leads a process group of its own, so that what is left of it can be found
parts=()
start_part() {
  "$@" >"$AIRFLOW_HOME/$2.log" 2>&1 </dev/null &
  parts+=($!)
}
stop_part() {
  kill -TERM -- "-$1" 2>/dev/null || return 0
  for _ in $(seq 40); do
    kill -0 -- "-$1" 2>/dev/null || break
    sleep 0.5
  done
  kill -KILL -- "-$1" 2>/dev/null || true
}
stop_parts() {
  trap - EXIT
  trap '' INT TERM
  echo "airflow: stopping; a running job is ended, its task fails"
  # The scheduler first: its tasks report their end to the API server.
  for ((part = ${#parts[@]} - 1; part >= 0; part--)); do stop_part "${parts[part]}"; done
}
trap stop_parts EXIT
trap 'exit 0' INT TERM

echo "airflow: starting; logs in $AIRFLOW_HOME/{api-server,scheduler,dag-processor}.log"
start_part airflow api-server
start_part airflow dag-processor
start_part airflow scheduler --skip-serve-logs

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
cat <<END

Airflow is ready: $url   user admin, password $(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["admin"])' "$passwords")
In a second shell:
  source scripts/env.sh${1:+ $1}
  airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07
  airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07 --reprocess-behavior completed
  airflow dags list-runs lte_daily
Ctrl-C stops it.
END
wait -n "${parts[@]}" || true
echo "airflow: a part stopped by itself; see $AIRFLOW_HOME/*.log" >&2
exit 1
