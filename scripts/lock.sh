#!/usr/bin/env bash
# Writes the files with exact versions and hashes: constraints.txt (what `make install` installs), constraints-image.txt
# (what the Docker image has: no tools of development) and docs/constraints.txt (the site). Called by `make lock`.
# A version in such a file is kept, unless pyproject.toml forbids it. To raise a version, change its pin and run this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v uv >/dev/null; then
  uv=uv
else
  [ -x build/lock/bin/uv ] || { python3 -m venv build/lock; build/lock/bin/python -m pip install --quiet "uv>=0.9"; }
  uv=build/lock/bin/uv
fi

# No address of a package index is written, so the files are valid for every index.
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$@"
}

compile pyproject.toml --extra dev --extra experiments --output-file constraints.txt
# The image has the same versions: the copy gives the versions to keep; packages that the image does not need go.
cp constraints.txt constraints-image.txt
compile pyproject.toml --group build --output-file constraints-image.txt
compile --group docs --output-file docs/constraints.txt
