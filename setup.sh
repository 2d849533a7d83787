#!/usr/bin/env bash
# Installs the packages Stoa builds with, on Debian 12 or Ubuntu 24.04. Installs only what is missing.
#   ./setup.sh           what a build needs
#   ./setup.sh --tests   and what only tests use: a SLURM and network namespaces (tests/acceptance/
#                        slurm_run, two_hosts); those are skipped where it is absent
set -euo pipefail

packages=(build-essential cmake ninja-build pkg-config
    openmpi-bin libopenmpi-dev libhdf5-openmpi-dev hdf5-tools
    libyaml-cpp-dev libboost-program-options-dev libboost-context-dev libfmt-dev nlohmann-json3-dev
    zlib1g-dev libxxhash-dev libpcre2-dev catch2 curl ca-certificates)
case "${1:-}" in
    "") ;;
    --tests) packages+=(slurm-wlm munge iproute2 libpmix2) ;;
    *) echo "setup: unknown option $1; --tests or nothing" >&2; exit 2 ;;
esac

missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: all ${#packages[@]} packages are installed"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "setup: this system has no apt-get; install the equivalents of: ${missing[*]}" >&2
    exit 1
fi
run=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: run as root, or install sudo, to install: ${missing[*]}" >&2; exit 1; }
    run=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: done"
