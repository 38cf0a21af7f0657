#!/usr/bin/env bash
# Runs the CUDA backend's tests on a card, then under compute-sanitizer where that is installed.
#   tests/gpu/run.sh [BUILD_DIR]      default: build/release. The binaries must be built (targets cuda_gpu_*).
# Needs the driver, the CUDA 13 libraries and the built binaries; no compiler, no network. Ends with one line per program.
set -euo pipefail
cd "$(dirname "$0")/../.."
build="${1:-build/release}/tests/gpu/cuda"
programs="cuda_gpu_ops_test cuda_gpu_memory_test cuda_gpu_model_test"
failed=0
summary=""

note() { summary="$summary$1: $2"$'\n'; }

# name, command...: runs it, and keeps its outcome for the end. 77 says that there is no card.
outcome() {
  local name="$1" status=0
  shift
  "$@" || status=$?
  case $status in
    0) note "$name" passed ;;
    77) note "$name" "skipped, no usable CUDA device"; failed=77 ;;
    *) note "$name" "failed ($status)"; failed=1 ;;
  esac
}

command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit,temperature.gpu --format=csv
for program in $programs; do
  outcome "$program" "$build/$program"
done
if [ $failed = 0 ] && command -v compute-sanitizer >/dev/null 2>&1; then
  for tool in memcheck racecheck synccheck; do
    outcome "ops under $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/cuda_gpu_ops_test"
  done
fi
printf '%s' "$summary"
exit $failed
