#!/usr/bin/env bash
# From real web text to a resumed, two-stage run on two ranks, in a few minutes on two cores.
#   ./quickstart.sh [WARC or WET files or folders ...]
# Web text comes from the arguments, else from $STOA_CRAWL (paths separated by colons or spaces), else
# from a piece of the current Common Crawl, else from the documents of this system. Of a folder, the WARC
# and WET files below it are taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

out=${STOA_QUICKSTART_DIR:-runs/quickstart-data}
ranks=2
stoa=build/cpu-release/stoa

say() { printf '\n== %s\n' "$*"; }

# A piece of the newest crawl's first WET file: the first 8 MB, cut mid-member, which the reader knows how
# to take.
fetch_common_crawl() {
    local base=https://data.commoncrawl.org id path
    id=$(curl -sf -m 10 https://index.commoncrawl.org/collinfo.json | grep -o '"id": *"[^"]*"' | head -n 1 | cut -d'"' -f4) || return 1
    [ -n "$id" ] || return 1
    path=$(curl -sf -m 20 "$base/crawl-data/$id/wet.paths.gz" | gzip -dc 2>/dev/null | head -n 1) || return 1
    curl -sf -m 60 -r 0-8388607 "$base/$path" -o "$out/common-crawl.wet.gz" || return 1
    echo "the first 8 MB of $base/$path"
}

# One WET-like record per text file under /usr/share/doc, up to 6 MB.
make_system_warc() {
    local file text bytes total=0
    : > "$out/system-docs.warc"
    while IFS= read -r file; do
        case $file in
            *.gz) text=$(gzip -dc "$file" 2>/dev/null | tr -d '\000'; printf x) ;;
            *) text=$(tr -d '\000' < "$file"; printf x) ;;
        esac
        text=${text%x}
        bytes=$(printf '%s' "$text" | wc -c)
        [ "$bytes" -ge 500 ] || continue
        printf 'WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: file://%s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n' \
            "$file" "$bytes" "$text" >> "$out/system-docs.warc"
        total=$((total + bytes))
        [ "$total" -lt 6000000 ] || break
    done < <(find /usr/share/doc -type f \( -name 'README*' -o -name 'NEWS*' -o -name '*.txt' -o -name '*.txt.gz' -o -name 'copyright' -o -name 'changelog*' \) -size -200k | LC_ALL=C sort)
    [ "$total" -gt 0 ]
}

# A folder stands for the crawl files below it; one without any stands for itself.
expand() {
    local path found
    for path in "$@"; do
        if [ -d "$path" ]; then
            mapfile -t found < <(find -L "$path" -type f \( -name '*.warc' -o -name '*.warc.gz' -o -name '*.wet' -o -name '*.wet.gz' \) | LC_ALL=C sort)
            [ ${#found[@]} -eq 0 ] && found=("$path")
            inputs+=("${found[@]}")
        else
            inputs+=("$path")
        fi
    done
}

say "packages"
./setup.sh

say "build"
cmake --preset cpu-release >/dev/null
cmake --build --preset cpu-release -j "$(nproc)" --target stoa -- --quiet
began=$SECONDS
mkdir -p "$out"

say "web text"
inputs=()
if [ $# -gt 0 ]; then
    expand "$@"
    echo "taking the files named: ${inputs[*]}"
elif [ -n "${STOA_CRAWL:-}" ]; then
    if [ -e "$STOA_CRAWL" ]; then expand "$STOA_CRAWL"; else IFS=': ' read -r -a named <<< "$STOA_CRAWL"; expand "${named[@]}"; fi
    echo "taking STOA_CRAWL: ${inputs[*]}"
elif [ -s "$out/common-crawl.wet.gz" ]; then
    inputs=("$out/common-crawl.wet.gz")
    echo "taking the Common Crawl piece fetched earlier: ${inputs[*]}"
elif source=$(fetch_common_crawl); then
    inputs=("$out/common-crawl.wet.gz")
    echo "taking $source"
else
    make_system_warc || { echo "no web text: the network is unreachable and /usr/share/doc is empty; name a WARC or WET file" >&2; exit 3; }
    inputs=("$out/system-docs.warc")
    echo "the network is unreachable: taking a WARC made from the documents in /usr/share/doc"
fi

say "crawl -> text -> tokenizer -> token shards"
"$stoa" data build "${inputs[@]}" --out "$out/web" --vocab-size 1024 --holdout 2%

say "train on $ranks ranks: stage 1 web text, stage 2 verified reasoning problems"
config=configs/quickstart.yaml
# Other text makes another tokenizer, and that another run: the name carries its hash.
run=${STOA_QUICKSTART_RUN:-quickstart-$(sha256sum "$out/web/tokenizer.json" | cut -c1-6)}
overrides=("run.name=$run" "data.tokenizer=$out/web/tokenizer.json" "data.sources.web.path=$out/web")
if [ -n "${STOA_QUICK:-}" ]; then  # a reduced run that shows the pipeline, for tests
    overrides+=('stages.0.tokens=80k tokens' 'stages.1.tokens=80k tokens' eval.problems=20)
fi
"$stoa" launch --ranks "$ranks" "$config" "${overrides[@]}"

say "what next"
cat <<EOF
quickstart took $((SECONDS - began)) s after the build.
resume, or train on (the newest checkpoint is found by itself; add a stage or set another run.name to go further):
  $stoa launch --ranks $ranks $config ${overrides[*]@Q}
ask the model:
  $stoa generate runs/$run --family chain_sum --n 5
look inside:
  $stoa ckpt ls runs/$run
EOF
