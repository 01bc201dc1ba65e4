# shellcheck shell=bash
# Points this shell's `airflow`, `lte` and `python` at this clone:  source scripts/env.sh [CONFIG]
# Sourced by the other scripts and, for a shell of its own, by `make shell`.

LTE_HOME="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
export LTE_HOME
export PATH="${VENV:-$LTE_HOME/.venv}/bin:$PATH"

# Absolute, because tasks do not run where this shell stands.
LTE_CONFIG="$(realpath -m "${1:-${LTE_CONFIG:-$LTE_HOME/configs/complete_journey.toml}}")"
export LTE_CONFIG

# The samples have ended; without a last day Airflow would also schedule yesterday, for which they have no data.
case "$LTE_CONFIG" in
  "$LTE_HOME/configs/complete_journey.toml") export LTE_LAST_DAY=2017-12-31 ;;
  "$LTE_HOME/configs/fashion.toml") export LTE_LAST_DAY=2025-03-25 ;;
  *) case "${LTE_LAST_DAY:-}" in 2017-12-31 | 2025-03-25) unset LTE_LAST_DAY ;; esac ;; # left in this shell by a sample
esac

# Everything that Airflow keeps for this clone is under .airflow, whatever the variables of another Airflow say.
export AIRFLOW_HOME="$LTE_HOME/.airflow"
# One writer at a time: while the scheduler writes, a command waits for its turn; after the default of 5 s it would fail.
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="sqlite:///$AIRFLOW_HOME/airflow.db?timeout=60"
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

# Airflow's optional drawing of DAGs is not installed, and every command would say so.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore:Could not import graphviz}"
