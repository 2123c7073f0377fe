#!/usr/bin/env bash
# Runs pytest on an extension that is built with AddressSanitizer and UndefinedBehaviorSanitizer:
#     tests/sanitized.sh [what pytest is to run]
# Uses the packages of the environment that is active. Memory that csrc/ or the binding leaks is an error at the end of
# each process that ends as a Python program does; what the interpreter and other libraries keep is not
# (tests/leaks_of_others.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$PWD/build/sanitized
python=$environment/bin/python
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

python -m venv --without-pip "$environment"
echo "$packages" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/active.pth"
CMAKE_BUILD_TYPE=RelWithDebInfo python -m pip --python "$python" install -q --no-deps --no-build-isolation --force-reinstall \
  -C cmake.define.STREAMCORE_SANITIZE=address,undefined -C cmake.build-type=RelWithDebInfo \
  -C build-dir=build/sanitized-objects -C install.strip=false .

# libstdc++ as well: what throws in C++ libraries is found before the first of them is loaded.
export LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libstdc++.so)"
export PYTHONMALLOC=malloc
export UBSAN_OPTIONS=print_stacktrace=1
# handle_sigbus: the core handles read errors of mapped pages itself. malloc_context_size: who called malloc, and who
# called that, for leaks_of_others.txt; with more each call of ours would lie above the interpreter's.
export ASAN_OPTIONS=handle_sigbus=0:handle_segv=1:allocator_may_return_null=1:detect_leaks=1:malloc_context_size=4
export LSAN_OPTIONS=suppressions=$PWD/tests/leaks_of_others.txt:print_suppressions=0
exec "$python" -P -m pytest -p no:cacheprovider "$@"
