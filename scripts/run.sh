#!/usr/bin/env bash
# `make run`: the DAG through Airflow itself, for the day before DS (so that drift has something to compare with; without
# models) and for DS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-}"
source "$LTE_HOME/scripts/airflow_db.sh"
ds="${2:-${LTE_LAST_DAY:-}}"
if ! [[ "$ds" =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]]; then
  echo "make run: which data day? Say so: make run CONFIG=${1:-FILE} DS=2017-12-31 (got '$ds')" >&2
  exit 2
fi
# A person is watching: show the reason of a failure at once instead of trying again.
export LTE_RETRIES=0

run_day() {
  local day="$1" log="$AIRFLOW_HOME/run-$1.log"
  shift
  echo
  echo "==== $day: airflow dags test lte_daily $day (all of its output: $log)"
  if ! airflow dags test lte_daily "$day" "$@" </dev/null 2>&1 | tee "$log" | python "$LTE_HOME/scripts/show_tasks.py"; then
    echo "make run: the run of $day failed; the reason is above, the whole log in $log" >&2
    return 1
  fi
}

make_fashion() {
  local landing
  landing="$(lte check-config --config "$LTE_CONFIG" --json | python -c 'import json, sys; print(json.load(sys.stdin)["paths"]["landing"])')"
  [ ! -d "$landing" ] || return 0
  echo "no data yet: making the fashion shop (docs/fashion.md), a minute or two: lte make-fashion --out $landing"
  lte make-fashion --out "$landing"
}

started=$SECONDS
lte check-config --config "$LTE_CONFIG" >/dev/null
echo "config: $LTE_CONFIG"
case "$LTE_CONFIG" in
  "$LTE_HOME/configs/complete_journey.toml") python -m jobs.samples.complete_journey --config "$LTE_CONFIG" ;;
  "$LTE_HOME/configs/fashion.toml") make_fashion ;;
esac
prepare_airflow
# Models are trained once: the day before is there for its LTEs.
models="train_autoencoder|embed_users|build_examples|train_ranker|evaluate_ranker"
LTE_AUTOENCODER__ENABLED=false LTE_RANKER__ENABLED=false \
  run_day "$(date -u -d "$ds - 1 day" +%F)" --mark-success-pattern "$models"
run_day "$ds"

echo
echo "==== done in $((SECONDS - started)) s"
lte status --config "$LTE_CONFIG"
cat <<END

What to try next:
  source scripts/env.sh${1:+ $1}      this clone's airflow, lte and python in your shell (or: make shell)
  lte user USER                 the live embedding of one user, and the items nearest to it
  lte run $ds            the same tasks without Airflow
  make airflow                  scheduler and UI on this machine; then, in a second shell:
  airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07
  make help                     everything else
END
