# Sourced by every script here: a virtual environment in a temporary folder, removed at the end.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

# venv_with PACKAGE==VERSION ...: the environment, with these packages and what they need.
venv_with() {
    "${PYTHON:-python3}" -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check "$@"
}

# run <<'PY' ... PY: a program in that environment; extra words are its arguments.
run() {
    "$folder/venv/bin/python" -W ignore - "$@"
}
