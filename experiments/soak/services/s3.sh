#!/bin/bash
# An S3 server (moto) for `make soak ONLY=s3`: s3.sh FOLDER PORT makes the environment FOLDER unless it exists and serves until it is
# stopped. Requests of unknown keys and with wrong signatures are refused after POST /moto-api/reset-auth with the body 0.
set -euo pipefail
folder=${1:?a folder} port=${2:?a port} here=$(dirname "$(realpath "$0")")
if ! cmp -s "$here/s3.txt" "$folder/s3.txt"; then
  rm -rf "$folder"
  ${PYTHON:-python3} -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/s3.txt"
  cp "$here/s3.txt" "$folder/s3.txt"
fi
exec "$folder/bin/moto_server" -H 127.0.0.1 -p "$port"
