# shellcheck shell=bash
# Puts `airflow`, `lte` and `python` of this clone on the path of this shell:  source scripts/env.sh [CONFIG]
# Sourced by the other scripts and, for a shell of its own, by `make shell`.

LTE_HOME="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
export LTE_HOME
# scripts/bin has an `airflow` that starts its database first. A relative VENV is relative to the clone, as for make.
case "${VENV:=.venv}" in /*) ;; *) VENV="$LTE_HOME/$VENV" ;; esac
export PATH="$LTE_HOME/scripts/bin:$VENV/bin:$PATH"

# Absolute, because tasks do not run where this shell stands.
LTE_CONFIG="$(realpath -m "${1:-${LTE_CONFIG:-$LTE_HOME/configs/complete_journey.toml}}")"
export LTE_CONFIG

# The samples have ended. Without a last day Airflow would also schedule yesterday, a day without data.
case "$LTE_CONFIG" in
  "$LTE_HOME/configs/complete_journey.toml") export LTE_LAST_DAY=2017-12-31 ;;
  "$LTE_HOME/configs/fashion.toml") export LTE_LAST_DAY=2025-03-25 ;;
  *) case "${LTE_LAST_DAY:-}" in 2017-12-31 | 2025-03-25) unset LTE_LAST_DAY ;; esac ;; # left in this shell by a sample
esac

# One Airflow per deployment: runs of one configuration must not start tasks on the lake of another. The name of the
# home is made from the configuration's path relative to this clone, so that the name stays when the clone is moved.
lte_path="$(realpath -m --relative-base="$LTE_HOME" "$LTE_CONFIG")"
lte_name="$(basename "$lte_path" .toml)"
lte_name="${lte_name//[^[:alnum:]_-]/_}"
export AIRFLOW_HOME="$LTE_HOME/.airflow/$lte_name-$(printf '%s' "$lte_path" | sha256sum | cut -c1-8)"

# AIRFLOW_DB=postgres, the default, is a PostgreSQL of its own under AIRFLOW_HOME; scripts/with_database.py starts and
# stops it. AIRFLOW_DB=sqlite needs no server, but a command beside a running scheduler may fail with "database is
# locked". A home keeps the database it was made with.
AIRFLOW_DB_KIND="${AIRFLOW_DB:-postgres}"
[ -n "${AIRFLOW_DB:-}" ] || [ ! -e "$AIRFLOW_HOME/airflow.db" ] || AIRFLOW_DB_KIND=sqlite
# The socket is not under AIRFLOW_HOME: the path of a socket may have 107 bytes, and that of a clone may be longer.
AIRFLOW_DB_SOCKETS="/tmp/lte-airflow-$(id -u)-$(printf '%s' "$AIRFLOW_HOME" | sha256sum | cut -c1-12)"
export AIRFLOW_DB_KIND AIRFLOW_DB_SOCKETS
case "$AIRFLOW_DB_KIND" in
  postgres) AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="postgresql+psycopg2://airflow@/postgres?host=$AIRFLOW_DB_SOCKETS" ;;
  sqlite) AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="sqlite:///$AIRFLOW_HOME/airflow.db?timeout=60" ;;
  *) echo "AIRFLOW_DB: expected postgres or sqlite, got '$AIRFLOW_DB_KIND'" >&2; return 2 ;;
esac
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN
export AIRFLOW__CORE__DAGS_FOLDER="$LTE_HOME/dags"
export AIRFLOW__CORE__EXECUTOR=LocalExecutor
export AIRFLOW__CORE__PARALLELISM=4
export AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__CORE__AUTH_MANAGER=airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager
export AIRFLOW__LOGGING__BASE_LOG_FOLDER="$AIRFLOW_HOME/logs"
export AIRFLOW__LOGGING__COLORED_CONSOLE_LOG=False
export AIRFLOW__API__HOST=127.0.0.1
export AIRFLOW__API__PORT="${PORT:-8080}"
export AIRFLOW__API__WORKERS=1
export AIRFLOW__API__BASE_URL="http://127.0.0.1:$AIRFLOW__API__PORT"
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL="$AIRFLOW__API__BASE_URL/execution/"

# Airflow's optional package graphviz is not installed; every command would print a warning about it.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore:Could not import graphviz}"
