#!/usr/bin/env bash
# Entry point of the container: starts the server on all addresses, brings the schema to its newest revision, and serves until SIGTERM.
set -euo pipefail

: "${PGEARTH_PASSWORD:?must be set: the server listens on TCP and asks for it (scram-sha-256)}"

trap 'exit 0' TERM INT
pgearth server start --listen 0.0.0.0
trap 'pgearth server stop' EXIT
pgearth migrate

# bash runs a trap only between commands, but a signal ends `wait` at once.
while pgearth server status >/dev/null; do
    sleep 5 &
    wait $!
done
echo "The server has stopped by itself; its log is in $PGEARTH_HOME" >&2
trap - EXIT
exit 1
