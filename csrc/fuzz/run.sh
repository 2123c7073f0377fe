#!/usr/bin/env bash
# run.sh SECONDS [TARGET...]: builds the fuzz targets in a temporary folder and runs each for SECONDS, two at a time
# (FUZZ_JOBS: how many). The exit code is not 0 when something was found; the inputs are then in ./fuzz-findings.
# FUZZ_CORPUS: a folder that keeps what was learnt. FUZZ_SEED: repeats a run.
#
# run.sh controls SECONDS [TARGET...]: the other way round. Each target runs with bugs that csrc/control.h puts in, and it
# must find each of them in that time.
set -euo pipefail
targets=(batch segment index snapshot arrow journal rewrite records metadata key_map)
declare -A bugs=(
    [batch]="stored_buffers_not_checked"
    [segment]="tail_not_cleared"
    [index]="index_entry_believed"
    [snapshot]="producers_checksum_ignored"
    [arrow]="arrow_offsets_not_checked arrow_views_not_checked arrow_shape_not_checked"
    [journal]="replay_without_anchor"
    [rewrite]="newest_of_key_dropped row_lost_at_batch_border aborted_records_shown"
    [records]="earlier_records_not_valid"
    [metadata]="metadata_not_checked"
    [key_map]="latest_put_of_key_kept"
)
controls=
if [ "${1:-}" = controls ]; then
    controls=ON
    shift
fi
if [ $# -lt 1 ] || [ "$1" -lt 1 ]; then
    echo "usage: $0 [controls] SECONDS [$(IFS='|' && echo "${targets[*]}") ...]" >&2
    exit 2
fi
seconds=$1
shift
[ $# -gt 0 ] || set -- "${targets[@]}"
fuzz=$(cd "$(dirname "$0")" && pwd)
findings=$(pwd)/fuzz-findings
build=$(mktemp -d)
logs=$build
[ -d /dev/shm ] && [ -w /dev/shm ] && logs=$(mktemp -d -p /dev/shm) # the targets make thousands of small logs a second
trap 'rm -rf "$build" "$logs"' EXIT
trap 'kill $(jobs -p) 2> /dev/null; exit 130' INT TERM
quietly() { "$@" > "$build/log" 2>&1 || { cat "$build/log" >&2; exit 2; }; }
quietly cmake -S "$fuzz/../.." -B "$build" -DCMAKE_C_COMPILER="${CC:-clang}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSTREAMCORE_FUZZ=ON \
    -DSTREAMCORE_CONTROLS="${controls:-OFF}"
quietly cmake --build "$build" -j 2 --target fuzzing
export TMPDIR=$logs
quietly "$build/csrc/fuzz/make_seeds" "$build/seeds"
corpus=${FUZZ_CORPUS:-$build/corpus}

# start TARGET NAME: NAME is of its log and its findings.
start() {
    local target=$1 name=$2 inputs=("$corpus/$2" "$build/seeds/$1") folder
    mkdir -p "$corpus/$name" "$build/found/$name"
    for folder in "$fuzz/corpus/$target" "$fuzz/regressions/$target"; do
        [ ! -d "$folder" ] || inputs+=("$folder")
    done
    "$build/csrc/fuzz/fuzz_$target" -max_total_time="$seconds" -seed="${FUZZ_SEED:-0}" -timeout=20 -rss_limit_mb=2048 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="$build/found/$name/" "${inputs[@]}" > "$build/$name.log" 2>&1
}

inputs_of() { sed -n 's/stat::number_of_executed_units: *//p' "$build/$1.log"; }

search() {
    local target=$1
    if start "$target" "$target"; then
        echo "$target: $(inputs_of "$target") inputs, nothing found"
        return
    fi
    mkdir -p "$findings/$target"
    cp "$build/found/$target"/* "$findings/$target/" 2> /dev/null || true
    grep -v "NEW\|REDUCE\|pulse" "$build/$target.log" | tail -n 40
    echo "$target: FOUND, see $findings/$target"
    return 1
}

control() {
    local target=$1 bug missed=0
    for bug in ${bugs[$target]}; do
        STREAMCORE_CONTROL=$bug start "$target" "$bug" || true
        if [ -n "$(ls "$build/found/$bug")" ]; then
            echo "$target: $bug found, $(inputs_of "$bug") inputs"
        else
            missed=1
            tail -n 5 "$build/$bug.log"
            echo "$target: $bug NOT FOUND with $(inputs_of "$bug") inputs"
        fi
    done
    return $missed
}

status=0 running=0
for target in "$@"; do
    if [ "$running" -ge "${FUZZ_JOBS:-2}" ]; then
        wait -n || status=1
        running=$((running - 1))
    fi
    if [ -n "$controls" ]; then control "$target" & else search "$target" & fi
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || status=1
    running=$((running - 1))
done
exit $status
