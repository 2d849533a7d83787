#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests.
#   ./test.sh            the whole suite: unit, conformance, multirank, fault, acceptance --quick
#   ./test.sh --asan     unit and conformance under AddressSanitizer and UBSan
#   ./test.sh -R NAME    further arguments go to ctest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

preset=cpu-release
select=()
targets=()
if [ "${1:-}" = "--asan" ]; then
    shift
    preset=cpu-asan
    select=(-L 'unit|conformance')
    targets=(--target stoa tests_unit tests_conformance)
fi
jobs=$(nproc)
began=$SECONDS

echo "== packages"
./setup.sh
echo "== build ($preset, $jobs jobs)"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" "${targets[@]}" -j "$jobs" -- --quiet
echo "== tests (build took $((SECONDS - began)) s)"
# Real crawl files for the tests that want them; those tests skip with a reason where there are none.
if [ -z "${STOA_SHARED_DATA:-}" ] && [ -d ../shared/data ]; then
    STOA_SHARED_DATA=$(cd ../shared/data && pwd)
    export STOA_SHARED_DATA
fi
ctest --test-dir "build/$preset" --output-on-failure -j "$jobs" "${select[@]}" "$@"
echo "== all done in $((SECONDS - began)) s"
