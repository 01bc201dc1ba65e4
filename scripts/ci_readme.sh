#!/usr/bin/env bash
# For continuous integration: the other commands of the README, after `make run`. Each command must exit with 0 and print
# the expected text.
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$LTE_HOME"

must_say() {
  local wanted="$1" output
  shift
  echo "\$ $*"
  output="$("$@")"
  head -n 12 <<<"$output"
  grep -qF -- "$wanted" <<<"$output" || { echo "'$*' did not say '$wanted'" >&2; return 1; }
}

must_say "make run" make help
must_say "good" lte check-config
must_say '"ds": "2017-12-31"' lte status --json
must_say "n_items" lte user 2375 --json
must_say "lte_daily" airflow dags list
must_say "2017-11-07" airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07 --dry-run
# A rerun of the live day replaces its rows by the same ones and leaves what is live as it was.
lte run 2017-12-31
must_say '"ds": "2017-12-31"' lte status --json
# Switches to the snapshot of the day before, and then returns.
must_say '"ds": "2017-12-30"' lte rollback --json
must_say '"ds": "2017-12-31"' lte rollback --json
must_say "files compacted" lte maintain
must_say '"ds": "2017-12-31"' lte status --json
must_say '"interactions"' lte erase 2375 --json
if lte user 2375; then echo "an erased user is still live" >&2; exit 1; fi
