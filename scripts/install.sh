#!/usr/bin/env bash
# Makes the virtual environment and installs the project with exactly the tested versions. Called by make.
# pip and uv compare each fetched file with the hashes in constraints.txt. A file with another hash ends the
# installation. The configuration of pip or uv decides where the files come from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"

fits="import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
python="${PYTHON:-}"
# 3.11 first: all tests run on it.
for candidate in python3.11 python3.12 python3.13 python3; do
  [ -n "$python" ] || ! "$candidate" -c "$fits" 2>/dev/null || python="$candidate"
done

if [ ! -x "$venv/bin/python" ]; then
  if command -v uv >/dev/null; then
    uv venv --python "${python:-3.11}" "$venv"
  else
    [ -n "$python" ] || {
      echo "install: expected Python 3.11, 3.12 or 3.13 on the PATH, found none; set PYTHON=/path/to/python3.11" >&2
      exit 2
    }
    "$python" -m venv "$venv"
  fi
fi

if command -v uv >/dev/null; then
  echo "install: uv, into $venv (about 5 GB are unpacked the first time)"
  install=(uv pip install --python "$venv/bin/python")
else
  echo "install: pip, into $venv (3 to 6 minutes and about 5 GB the first time)"
  install=("$venv/bin/python" -m pip install --disable-pip-version-check)
fi

# pyspark is published as source only. Its build and the build of this project use the setuptools of the hashed set.
# Without build isolation no build fetches a setuptools whose hash nobody has checked.
builder="$(mktemp)"
trap 'rm -f "$builder"' EXIT
awk '/^[^ #]/ { inside = /^setuptools==/ } inside' constraints.txt >"$builder"
"${install[@]}" --require-hashes --requirement "$builder"
"${install[@]}" --require-hashes --no-build-isolation --requirement constraints.txt
"${install[@]}" --no-deps --no-build-isolation --editable .
touch "$venv/.installed"
