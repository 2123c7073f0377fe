#!/bin/sh
# run.sh SECONDS [TARGET...]: builds the fuzz targets in a temporary folder and runs each, SECONDS in total. The exit code is
# not 0 when something was found; the inputs are then in ./fuzz-findings. FUZZ_CORPUS: a folder that keeps what was learnt.
# FUZZ_SEED: repeats a run.
set -eu
if [ $# -lt 1 ] || [ "$1" -lt 1 ]; then
    echo "usage: $0 SECONDS [batch|segment|index|metadata ...]" >&2
    exit 2
fi
seconds=$1
shift
[ $# -gt 0 ] || set -- batch segment index metadata
fuzz=$(cd "$(dirname "$0")" && pwd)
findings=$(pwd)/fuzz-findings
build=$(mktemp -d)
logs=$build
[ -d /dev/shm ] && [ -w /dev/shm ] && logs=$(mktemp -d -p /dev/shm) # the targets make thousands of small logs a second
trap 'rm -rf "$build" "$logs"' EXIT
trap 'exit 130' INT TERM
cmake -S "$fuzz/../.." -B "$build" -DCMAKE_C_COMPILER="${CC:-clang}" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSTREAMCORE_FUZZ=ON \
    > "$build/log" 2>&1 || { cat "$build/log" >&2; exit 2; }
cmake --build "$build" -j 2 > "$build/log" 2>&1 || { cat "$build/log" >&2; exit 2; }

corpus=${FUZZ_CORPUS:-$build/corpus}
mkdir -p "$corpus"
"$build/csrc/fuzz/make_seeds" "$build/seeds"
each=$((seconds / $#))
[ "$each" -ge 1 ] || each=1
status=0
for target in "$@"; do
    mkdir -p "$corpus/$target" "$build/found/$target"
    set -- "$corpus/$target" "$build/seeds/$target"
    [ -d "$fuzz/regressions/$target" ] && set -- "$@" "$fuzz/regressions/$target"
    if TMPDIR="$logs" "$build/csrc/fuzz/fuzz_$target" -max_total_time="$each" -seed="${FUZZ_SEED:-0}" -timeout=20 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$build/found/$target/" "$@" > "$build/$target.log" 2>&1; then
        echo "$target: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "$build/$target.log" | grep -o '[0-9]*$') inputs, nothing found"
    else
        status=1
        mkdir -p "$findings/$target"
        cp "$build/found/$target"/* "$findings/$target/" 2>/dev/null || true
        grep -v "NEW\|REDUCE\|pulse" "$build/$target.log" | tail -n 40
        echo "$target: FOUND, see $findings/$target"
    fi
done
exit $status
