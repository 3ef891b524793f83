#!/usr/bin/env bash
# A Flower SuperNode uses gRPC up to flwr 1.39, but not from 1.40 on.
#
# Versions: flwr 1.39.0, 1.40.0, 1.41.0.
# Seen: `flower-supernode --help` names --grpc-rere and --grpc-adapter in 1.39; in 1.40 and 1.41 it names no transport,
#   and in 1.41 flower-superlink's --fleet-api-type is "Deprecated. The Fleet API now operates over HTTP."
# Expected: a minor release keeps the wire of a deployed fleet, or a major number says that it does not.
# Matters: servers, proxies and firewalls set up for Flower's gRPC, and nodes of mixed releases, stop at 1.40. Who needs
#   gRPC pins flwr<1.40 or brings a link of their own.
source "$(dirname "$0")/common.sh"

for version in 1.39.0 1.40.0 1.41.0; do
    venv_with "flwr==$version"
    "$folder/venv/bin/flower-supernode" --help > "$version.txt"
    "$folder/venv/bin/flower-superlink" --help > "link-$version.txt"
    found=$(grep -oE -- '--(grpc|rest|http)[a-z-]*' "$version.txt" | sort -u | tr '\n' ' ' || true)
    echo "flwr $version: ${found:-no transport to choose}"
done
grep -A1 -- '^  --fleet-api-type' link-1.41.0.txt
grep -q -- '--grpc-rere' 1.39.0.txt
! grep -q grpc-rere 1.40.0.txt || exit 1
! grep -q grpc-rere 1.41.0.txt || exit 1
grep -q 'The Fleet API now operates over HTTP' link-1.41.0.txt
