#!/usr/bin/env bash
# Makes the virtual environment and installs the project with exactly the tested versions. Called by make.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"

wanted="import sys; sys.exit(sys.version_info[:2] != (3, 11))"
python="${PYTHON:-}"
for candidate in python3.11 python3; do
  [ -n "$python" ] || ! "$candidate" -c "$wanted" 2>/dev/null || python="$candidate"
done

if command -v uv >/dev/null; then
  echo "install: uv, into $venv (about 5 GB are unpacked the first time)"
  [ -x "$venv/bin/python" ] || uv venv --python "${python:-3.11}" "$venv"
  uv pip install --python "$venv/bin/python" --constraint constraints.txt --editable '.[dev]'
else
  [ -n "$python" ] || { echo "install: Python 3.11 is not on the PATH; set PYTHON=/path/to/python3.11" >&2; exit 2; }
  echo "install: pip, into $venv (3 to 6 minutes and about 5 GB the first time)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
fi
touch "$venv/.installed"
