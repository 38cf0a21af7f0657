#!/usr/bin/env bash
# Everything that is to be run on a machine with a card: tests, sanitizers, speed. It needs the driver, the CUDA 13 libraries,
# the built programs and this repository; no compiler and no network.
#   tests/gpu/run.sh [PARTS] [OPTIONS]        without parts: all of them, in this order
#     --tests        the tests labelled gpu, then those that compare bits several times over
#     --sanitizer    compute-sanitizer: memcheck, synccheck, racecheck over the operations, memcheck over a whole life
#     --bench        the operations beside the card's ceilings (mneme_cuda_bench)
#     --models       generated models: equal bits twice, the CPU's probabilities, then speed at a growing past (mneme_speed)
#     --real         the model that MNEME_TEST_MODEL names: recall, facts, resume after SIGKILL; skipped where none is named
#   Options
#     --build DIR    the build directory (default: build/release)        --out DIR     where logs go (default: a new directory)
#     --device N     cuda:N, for --bench, --models and --real (0)        --limit S     seconds for each part (default: none)
#     --repeats N    of the tests that compare bits (5)                  --shapes LIST of --models ("0.5B 1B 8B")
#     --types LIST   weight types of --models ("bf16")                   --ladder LIST of past tokens ("16K 64K 256K 1M")
#     --models-dir D where generated models lie while they are used (default: a temporary directory)
#     --quick        a smoke test of this script: smaller and fewer
#   tests/gpu/run.sh --pack FILE.tar.gz [--build DIR]   packs the programs, without symbols, and the libraries that a bare
#                                               machine lacks; --build takes the file there
# To build what it runs: cmake --build --preset release --target gpu_programs
# Each part ends with a line of name=value pairs, and all of these lines stand at the end again. A rung of a ladder that fits
# neither the host's nor the card's memory is left out. Exit status: 0, 1 if anything failed, 77 where there is no card.
set -uo pipefail
cd "$(dirname "$0")/../.."
root="$PWD"

usage() { sed -n '2,20p' "$0" >&2; exit 2; }
parts="" build=build/release out="" device=0 limit=0 repeats=5 shapes="0.5B 1B 8B" types=bf16 ladder="16K 64K 256K 1M"
models_dir="" quick=no pack=""
while [ $# -gt 0 ]; do
  case "$1" in
    --tests|--sanitizer|--bench|--models|--real) parts="$parts ${1#--}"; shift; continue ;;
    --quick) quick=yes; shift; continue ;;
  esac
  [ $# -ge 2 ] || usage
  case "$1" in
    --build) build="$2" ;;
    --out) out="$2" ;;
    --device) device="$2" ;;
    --limit) limit="$2" ;;
    --repeats) repeats="$2" ;;
    --shapes) shapes="$2" ;;
    --types) types="$2" ;;
    --ladder) ladder="$2" ;;
    --models-dir) models_dir="$2" ;;
    --pack) pack="$2" ;;
    *) usage ;;
  esac
  shift 2
done
for number in "$device" "$limit" "$repeats"; do
  case "$number" in ''|*[!0-9]*) usage ;; esac
done
[ -n "$parts" ] || parts="tests sanitizer bench models real"
build="$(realpath -m "$build")"
gpu_tests="cuda_gpu_ops_test cuda_gpu_memory_test cuda_gpu_model_test"
programs="tests/mneme_cuda_bench tests/mneme_speed tests/mneme_make_model samples/mneme"
for name in $gpu_tests; do programs="$programs tests/gpu/cuda/$name"; done

say() { printf '== %s\n' "$*"; }

# ---- packing

if [ -n "$pack" ]; then
  set -e
  packed="$(mktemp -d)"
  trap 'rm -rf "$packed"' EXIT
  for program in $programs; do
    mkdir -p "$packed/$(dirname "$program")"
    strip -o "$packed/$program" "$build/$program"
  done
  mkdir "$packed/lib"
  # Everything but the C library and the driver, which must be the machine's own.
  for program in $programs; do ldd "$build/$program"; done | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|libcuda|libnvidia-[a-z]*)[.]so' |
    while read -r library; do cp -L "$library" "$packed/lib/"; done
  tar -C "$packed" -czf "$pack" .
  echo "packed_bytes=$(stat -c %s "$pack")"
  exit 0
fi

# ---- running

scratch="$(mktemp -d)"
clocks=""
cleanup() {
  [ -z "$clocks" ] || kill "$clocks" 2>/dev/null
  rm -rf "$scratch"
}
trap cleanup EXIT

if [ -f "$build" ]; then
  mkdir "$scratch/build"
  tar -C "$scratch/build" -xzf "$build" || exit 1
  build="$scratch/build"
fi
missing=""
for program in $programs; do [ -x "$build/$program" ] || missing="$missing $program"; done
if [ -n "$missing" ]; then
  echo "not built:$missing (cmake --build --preset release --target gpu_programs)" >&2
  exit 1
fi
# Of the packed libraries only those that the machine lacks, or has too old.
if [ -d "$build/lib" ]; then
  mkdir "$scratch/lib"
  for program in $programs; do ldd "$build/$program" 2>&1; done | awk '/not found/ {print $1}' | sed 's/:$//; s|.*/||' |
    sort -u | while read -r library; do [ ! -e "$build/lib/$library" ] || ln -s "$build/lib/$library" "$scratch/lib/"; done
  export LD_LIBRARY_PATH="$scratch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

"$build/tests/gpu/cuda/cuda_gpu_ops_test" --test-case=none >/dev/null 2>&1
case $? in
  0) ;;
  77) echo "skipped: this machine has no usable CUDA device"; exit 77 ;;
  *) echo "the test programs do not start here:" >&2; "$build/tests/gpu/cuda/cuda_gpu_ops_test" --test-case=none >&2; exit 1 ;;
esac

out="$(realpath -m "${out:-$(mktemp -d)}")"
mkdir -p "$out"
say "logs: $out"
if command -v nvidia-smi >/dev/null 2>&1; then
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv | tee "$out/card.csv"
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,memory.used --format=csv -l 2 \
    >"$out/clocks.csv" 2>/dev/null &
  clocks=$!
fi
say "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%Y-%m-%dT%H:%M:%SZ), $(nproc) CPU cores"

part="" part_end=0 part_failed=0 part_pairs="" summary="" failed=0
ceiling=()  # for mneme_speed, once --bench has measured it; 0 is "measure"

# step NAME COMMAND..: runs it within the part's time, its output in a log; a failure is kept for the end.
step() {
  local name="$1" status=0 left=999999 began=$SECONDS
  shift
  if [ "$limit" -gt 0 ]; then
    left=$((part_end - SECONDS))
    if [ "$left" -le 0 ]; then
      say "$part: $name: no time left"
      part_pairs="$part_pairs $name=no_time"
      part_failed=1
      return 1
    fi
  fi
  timeout --kill-after=10 "$left" "$@" >"$out/$part-$name.log" 2>&1 || status=$?
  case $status in
    0) say "$part: $name: passed ($((SECONDS - began)) s)"; part_pairs="$part_pairs $name=passed" ;;
    124|137) say "$part: $name: out of time"; part_pairs="$part_pairs $name=out_of_time"; part_failed=1 ;;
    *) say "$part: $name: FAILED ($status)"; tail -n 25 "$out/$part-$name.log"; part_pairs="$part_pairs $name=failed"; part_failed=1 ;;
  esac
  return $status
}
# The pairs of a step's last line, each with a prefix.
pairs_of() { tail -n 1 "$out/$part-$1.log" | tr ' ' '\n' | grep '=' | sed "s/^/${2:-}/" | tr '\n' ' '; }

# Names of the test cases that compare bits.
bit_cases="*bits*,*does not depend*,*do not depend*,*exchanged*,*no bit*,*two lives*,*take turns*,*goes on*,*do not matter*"

run_tests() {
  local name i
  for name in $gpu_tests; do step "$name" "$build/tests/gpu/cuda/$name"; done
  for i in $(seq "$repeats"); do
    for name in cuda_gpu_ops_test cuda_gpu_model_test; do
      step "${name}_bits_$i" "$build/tests/gpu/cuda/$name" --test-case="$bit_cases"
    done
  done
}

run_sanitizer() {
  if ! command -v compute-sanitizer >/dev/null 2>&1; then
    part_outcome=skipped part_pairs="$part_pairs compute_sanitizer=missing"
    return
  fi
  local tool ops="$build/tests/gpu/cuda/cuda_gpu_ops_test" few=()
  [ $quick = no ] || few=(--test-case="*rope*")
  for tool in memcheck synccheck racecheck; do
    # Calls that fail are the tests' own business: some of them run out of memory on purpose.
    local options=(--tool "$tool" --error-exitcode 1)
    [ $tool != memcheck ] || options+=(--report-api-errors no)
    step "ops_$tool" compute-sanitizer "${options[@]}" "$ops" "${few[@]}"
  done
  step life_memcheck compute-sanitizer --tool memcheck --error-exitcode 1 --report-api-errors no \
    "$build/tests/gpu/cuda/cuda_gpu_model_test" --test-case="two lives*"
}

run_bench() {
  local few=()
  [ $quick = no ] || few=(--quick)
  step operations "$build/tests/mneme_cuda_bench" --device "$device" "${few[@]}"
  sed '$d' "$out/bench-operations.log"
  part_pairs="$part_pairs $(pairs_of operations)"
  # For the ladders: the better of reading and copying.
  ceiling=(--ceiling "$(pairs_of operations | tr ' ' '\n' |
    awk -F= '/^(read|copy)_gbps=/ && $2 > best {best = $2} END {print best + 0}')")
}

# Bytes that a token's keys and values take in all layers, stored as f16.
kv_bytes() { case "$1" in tiny) echo 1024 ;; 0.5B) echo 12288 ;; 1B) echo 32768 ;; *) echo 131072 ;; esac; }
tokens_of() { case "$1" in *K) echo $((${1%K} * 1024)) ;; *M) echo $((${1%M} * 1048576)) ;; *) echo "$1" ;; esac; }
host_free() { echo $(($(awk '/^MemAvailable/ {print $2}' /proc/meminfo) * 1024)); }
card_bytes() {  # 0: not known
  local mib
  mib="$(nvidia-smi --id="$device" --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1)"
  case "$mib" in ''|*[!0-9]*) echo 0 ;; *) echo $((mib * 1048576)) ;; esac
}
# rungs BYTES_PER_TOKEN ROOM: the ladder's rungs whose keys and values fit into ROOM bytes, joined by commas.
rungs() {
  local rung list=""
  for rung in $ladder; do
    [ $(($(tokens_of "$rung") * $1)) -gt "$2" ] || list="$list,$rung"
  done
  echo "${list#,}"
}
mean_nll() { tr -d '{}"[]' <"$1" | tr ',:' '\n\n' | awk '/top1/ {exit} /^[0-9.]/ {sum += $1; n++} END {printf "%.5f", n ? sum / n : -1}'; }

# The same probabilities twice, bit for bit, and about those of the CPU's backend.
score_model() {
  local model="$1" name="$2" mneme="$build/samples/mneme" run
  # One JSON line of text: the repository's own, without what JSON would have to escape.
  printf '{"text":"%s"}\n' "$(tr -d '"\\\\`\t' <README.md | tr '\n' ' ' | LC_ALL=C tr -cd '[:print:]' | head -c 3000)" >"$scratch/text"
  "$mneme" tokenize --model "$model" <"$scratch/text" >"$scratch/ids" || return
  for run in "one cuda:$device" "two cuda:$device" "cpu cpu"; do
    step "score_${name}_${run% *}" bash -c '"$1" score --model "$2" --device "$3" <"$4" >"$5"' - \
      "$mneme" "$model" "${run#* }" "$scratch/ids" "$scratch/${run% *}" || return
  done
  if cmp -s "$scratch/one" "$scratch/two"; then
    part_pairs="$part_pairs ${name}_same_bits=yes"
  else
    part_pairs="$part_pairs ${name}_same_bits=NO"
    part_failed=1
  fi
  part_pairs="$part_pairs ${name}_nll_cuda=$(mean_nll "$scratch/one") ${name}_nll_cpu=$(mean_nll "$scratch/cpu")"
}

# climb NAME MODEL RUNGS OPTIONS..: one ladder.
climb() {
  local name="$1" model="$2" list="$3"
  if [ -z "$list" ]; then
    part_pairs="$part_pairs $name=does_not_fit"
    return
  fi
  shift 3
  step "$name" "$build/tests/mneme_speed" "$model" - "ladder:$list" --device "cuda:$device" --tokens 256 "$@" \
    "${ceiling[@]}"
  grep -v '^device_mib' "$out/$part-$name.log"
  part_pairs="$part_pairs $(pairs_of "$name" "${name}_")"
}

run_models() {
  local shape type name model bytes in_ram on_card
  for shape in $shapes; do
    for type in $types; do
      name="${shape/./_}_$type" model="${models_dir:-$scratch}/$shape-$type.gguf"
      step "make_$name" "$build/tests/mneme_make_model" "$shape" "$type" "$model" || { rm -f "$model"; continue; }
      part_pairs="$part_pairs $(pairs_of "make_$name" "${name}_")"
      score_model "$model" "$name"
      bytes=$(kv_bytes "$shape")
      in_ram=$(($(host_free) * 7 / 10)) on_card=$(card_bytes)
      on_card=$(((on_card - $(stat -c %s "$model") * 5 / 4) * 8 / 10))
      if [ "$(card_bytes)" = 0 ] || [ $on_card -gt $in_ram ]; then on_card=$in_ram; fi  # the store is in RAM
      local resident=(--cached-blocks all --host-gib 4)
      climb "${name}_two_stage" "$model" "$(rungs "$bytes" "$on_card")" --selector two_stage "${resident[@]}"
      climb "${name}_representatives" "$model" "$(rungs "$bytes" "$on_card")" --selector representatives "${resident[@]}"
      climb "${name}_two_stage_q8" "$model" "$(rungs $((bytes / 2)) "$on_card")" --selector two_stage --unit-type q8 \
        "${resident[@]}"
      climb "${name}_preset_slots" "$model" "$(rungs "$bytes" "$in_ram")" --selector two_stage --host-gib 16
      rm -f "$model"
    done
  done
}

run_real() {
  if [ -z "${MNEME_TEST_MODEL:-}" ]; then
    part_outcome=skipped part_pairs="$part_pairs MNEME_TEST_MODEL=not_set"
    return
  fi
  export MNEME_MODEL="$MNEME_TEST_MODEL" MNEME_BUILD_DIR="$build"
  local on="cuda:$device" name few=()
  score_model "$MNEME_TEST_MODEL" real
  climb real_speed "$MNEME_TEST_MODEL" "16K,64K" --selector two_stage
  step demo samples/demo.sh --device "$on"
  part_pairs="$part_pairs $(pairs_of demo demo_)"
  if ! command -v python3 >/dev/null 2>&1; then
    part_pairs="$part_pairs echo=python3_is_missing facts=python3_is_missing"
    return
  fi
  [ $quick = no ] || few=(--passages 2)
  for name in decode prefill; do
    step "echo_$name" tests/eval/echo.sh --device "$on" --reading "$name" "${few[@]}"
    part_pairs="$part_pairs $(pairs_of "echo_$name" "echo_${name}_")"
  done
  [ $quick = no ] || few=(--facts 2)
  step facts tests/eval/facts.sh --device "$on" "${few[@]}"
  part_pairs="$part_pairs $(pairs_of facts facts_)"
}

cd "$root"
for part in $parts; do
  say "$part"
  part_failed=0 part_pairs="" part_outcome=passed began=$SECONDS part_end=$((SECONDS + limit))
  "run_$part"
  if [ $part_failed != 0 ]; then part_outcome=failed failed=1; fi
  line="$(echo "part=$part outcome=$part_outcome seconds=$((SECONDS - began)) $part_pairs" | tr -s ' ')"
  printf '%s\n' "$line"
  summary="$summary$line"$'\n'
done
say "summary"
printf '%s' "$summary" | tee "$out/summary.txt"
exit $failed
