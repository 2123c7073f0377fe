#!/usr/bin/env bash
# Runs pytest on an extension that is built with AddressSanitizer and UndefinedBehaviorSanitizer:
#     tests/sanitized.sh              all but tests/crash and what is slow, in two passes
#     tests/sanitized.sh ARGUMENTS    what pytest is to run, without DuckDB
# Uses gcc and the packages of the environment that is active. Memory that csrc/ leaks is an error at the end of each
# process that ends as a Python program does; what the interpreter and other libraries keep is not
# (tests/leaks_of_others.txt). DuckDB leaks a schema of each table that it reads from Arrow, and pyarrow what it had of a
# stream that breaks: tests find no DuckDB, and the second pass, for SQL and hostile arrays, counts no leaks.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/build/sanitized
python=$build/environment/bin/python
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

python -m venv --without-pip "$build/environment"
echo "$packages" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/active.pth"
CC=gcc python -m pip --python "$python" install -q --no-deps --no-build-isolation --force-reinstall \
  -C cmake.define.STREAMCORE_SANITIZE=address,undefined -C cmake.build-type=RelWithDebInfo \
  -C build-dir="$build/objects" -C install.strip=false .

# handle_sigbus: the core handles read errors of mapped pages itself. malloc_context_size: a leak is known by who called
# malloc, and who called that; more callers would lead from our code into the interpreter, which is let off.
export ASAN_OPTIONS=handle_sigbus=0:allocator_may_return_null=1:detect_leaks=1:malloc_context_size=3
export LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_others.txt:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONMALLOC=malloc
# libstdc++ as well: it must be there before the first library that throws.
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"

# The control: a library that is named like the extension keeps 100 bytes, and that is an error.
control=$build/_control.$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
gcc -g -fno-omit-frame-pointer -shared -fPIC -o "$control" -x c - <<<'#include <stdlib.h>
void *kept;
void forget(void) { kept = malloc(100); kept = 0; }'
check='import ctypes, sys, streamcore._core; sys.argv[1:] and ctypes.CDLL(sys.argv[1]).forget()'
LD_PRELOAD=$preload "$python" -P -c "$check"
if LD_PRELOAD=$preload "$python" -P -c "$check" "$control" 2>/dev/null; then
  echo "a leak put in on purpose is not found" >&2
  exit 1
fi

mkdir -p "$build/without"
echo 'raise ModuleNotFoundError("left out", name="duckdb")' >"$build/without/duckdb.py"
passes() { LD_PRELOAD=$preload "$python" -P -m pytest -p no:cacheprovider "$@"; }
if [ $# -gt 0 ]; then
  PYTHONPATH=$build/without passes "$@"
else
  PYTHONPATH=$build/without passes -q -m 'not slow' --ignore tests/crash --ignore tests/test_hostile_arrow.py tests
  ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 passes -q -m 'not slow' tests/test_sql.py tests/test_cli_data.py \
    tests/test_docs.py tests/test_examples.py tests/test_example_programs.py tests/test_hostile_arrow.py
fi
