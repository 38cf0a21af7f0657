#!/usr/bin/env bash
# Builds Mneme and runs its tests, after setting up all they need (Debian packages as root, the test model).
#   tests/run.sh               optimised build, the default suite
#   tests/run.sh --sanitizers  besides: the suite under ASan+UBSan, the threaded tests under TSan
#   tests/run.sh --no-model    without the real model (nothing is downloaded; its cases skip)
#   tests/run.sh -- ARGS       ARGS go to ctest
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/setup.sh

sanitizers=no model=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --sanitizers) sanitizers=yes ;;
    --no-model) model=no ;;
    --) shift; break ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
  esac
  shift
done

mneme_install_packages
if [ $model = yes ]; then
  mneme_fetch_model
  export MNEME_TEST_MODEL="$mneme_model"
fi

mneme_say "release build"
mneme_build release
ctest --preset release "$@"

if [ $sanitizers = yes ]; then
  export UBSAN_OPTIONS=print_stacktrace=1 MNEME_TEST_QUICK=1
  threaded="gpu_test persistence_test agent_test sdk_test"
  mneme_say "AddressSanitizer and UndefinedBehaviorSanitizer build"
  mneme_build dev $threaded memory_test model_test system_test samples_test cuda_shim_ops_test cuda_shim_memory_test cuda_shim_model_test \
    cuda_shim_sdk_test cuda_shim_bench
  ctest --preset dev -LE gpu "$@"
  mneme_say "ThreadSanitizer build"
  mneme_build tsan $threaded
  ctest --preset tsan -R "^(${threaded// /|})\$" "$@"
fi
