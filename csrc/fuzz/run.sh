#!/usr/bin/env bash
# run.sh SECONDS [TARGET...]: builds the fuzz targets in a temporary folder and runs each for SECONDS, two at a time
# (FUZZ_JOBS: how many). The exit code is not 0 when something was found; the inputs are then in ./fuzz-findings.
# FUZZ_CORPUS: a folder that keeps what was learnt. FUZZ_SEED: repeats a run.
set -euo pipefail
targets=(batch segment index snapshot arrow journal rewrite records metadata key_map)
if [ $# -lt 1 ] || [ "$1" -lt 1 ]; then
    echo "usage: $0 SECONDS [$(IFS='|' && echo "${targets[*]}") ...]" >&2
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
quietly cmake -S "$fuzz/../.." -B "$build" -DCMAKE_C_COMPILER="${CC:-clang}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSTREAMCORE_FUZZ=ON
quietly cmake --build "$build" -j 2
export TMPDIR=$logs
quietly "$build/csrc/fuzz/make_seeds" "$build/seeds"
corpus=${FUZZ_CORPUS:-$build/corpus}

run() {
    local target=$1 inputs=("$corpus/$1" "$build/seeds/$1") folder
    mkdir -p "$corpus/$target" "$build/found/$target"
    for folder in "$fuzz/corpus/$target" "$fuzz/regressions/$target"; do
        [ ! -d "$folder" ] || inputs+=("$folder")
    done
    if "$build/csrc/fuzz/fuzz_$target" -max_total_time="$seconds" -seed="${FUZZ_SEED:-0}" -timeout=20 -rss_limit_mb=2048 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="$build/found/$target/" "${inputs[@]}" > "$build/$target.log" 2>&1; then
        echo "$target: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/$target.log") inputs, nothing found"
        return
    fi
    mkdir -p "$findings/$target"
    cp "$build/found/$target"/* "$findings/$target/" 2> /dev/null || true
    grep -v "NEW\|REDUCE\|pulse" "$build/$target.log" | tail -n 40
    echo "$target: FOUND, see $findings/$target"
    return 1
}

status=0 running=0
for target in "$@"; do
    if [ "$running" -ge "${FUZZ_JOBS:-2}" ]; then
        wait -n || status=1
        running=$((running - 1))
    fi
    run "$target" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || status=1
    running=$((running - 1))
done
exit $status
