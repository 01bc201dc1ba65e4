#!/usr/bin/env bash
# Writes the files with exact versions and hashes: constraints.txt (what `make install` installs), constraints-image.txt
# (what the Docker image has: no tools of development) and docs/constraints.txt (the site). Called by `make lock`.
# A version that stands in a file stays, unless pyproject.toml forbids it: to raise one, change its pin and run this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v uv >/dev/null; then
  uv=uv
else
  [ -x build/lock/bin/uv ] || { python3 -m venv build/lock; build/lock/bin/python -m pip install --quiet "uv>=0.9"; }
  uv=build/lock/bin/uv
fi

# No address of a package index is written: the files are right wherever the packages come from.
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$@"
}

compile pyproject.toml --extra dev --output-file constraints.txt
# The image has the same versions: those that stand in the file are kept where they are needed.
cp constraints.txt constraints-image.txt
compile pyproject.toml --group build --output-file constraints-image.txt
compile --group docs --output-file docs/constraints.txt
