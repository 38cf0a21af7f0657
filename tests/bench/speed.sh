#!/usr/bin/env bash
# Speed of prefill and decode on the real model, beside llama.cpp on the same file when its llama-bench is given; then what durability costs.
#   tests/bench/speed.sh [--llama-bench PATH] [--quick] [--threads N] [--rounds N]
# Both engines run in turn within each round, so that a machine that changes speed changes both; ratios are medians of the rounds' ratios.
# --quick: one round, prefill 512 and 2K, decode at 0 and 2K. Ends with one line of name=value pairs.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/support/setup.sh

llama_bench="" quick=no threads="$(nproc)" rounds=3
while [ $# -gt 0 ]; do
  case "$1" in
    --llama-bench) llama_bench="$2"; shift ;;
    --threads) threads="$2"; shift ;;
    --rounds) rounds="$2"; shift ;;
    --quick) quick=yes ;;
    *) sed -n '2,5p' "$0" >&2; exit 2 ;;
  esac
  shift
done
prefills="512 2048 8192" decodes="0 2048 8192 32768"
if [ $quick = yes ]; then rounds=1 prefills="512 2048" decodes="0 2048"; fi

mneme_install_packages
mneme_fetch_model
mneme_build release mneme_speed mneme_durability_cost
text="$(mktemp)"
results="$(mktemp)"
trap 'rm -f "$text" "$results"' EXIT
cat /usr/share/common-licenses/GPL-3 /usr/share/common-licenses/LGPL-2.1 /usr/share/common-licenses/Artistic >"$text"

ours() { build/release/tests/mneme_speed "$mneme_model" "$text" "$1" --threads "$threads" --repeat "$2" | awk '/^median/ {print $2}'; }
# tokens per second of llama-bench for one test; flash attention on, K and V in f16
theirs() { "$llama_bench" -m "$mneme_model" -t "$threads" -fa 1 -r "$1" "${@:2}" -o csv 2>/dev/null | tail -n 1 | awk -F'","' '{print $(NF-1)}'; }
record() { printf '%s %s %s\n' "$1" "$2" "$3" >>"$results"; }

for round in $(seq "$rounds"); do
  for n in $prefills; do
    mneme_say "round $round: prefill $n"
    a="$(ours "prefill:$n" 1)"
    b=-
    if [ -n "$llama_bench" ] && { [ "$n" != 8192 ] || [ "$round" = 1 ]; }; then b="$(theirs 1 -p "$n" -n 0)"; fi
    record "prefill$n" "$a" "$b"
  done
  for past in $decodes; do
    if [ "$past" = 32768 ] && [ "$round" != 1 ]; then continue; fi
    mneme_say "round $round: decode after $past tokens"
    a="$(ours "decode:$past" 1)"
    b=-
    if [ -n "$llama_bench" ] && [ "$past" -le 8192 ] && { [ "$past" -le 2048 ] || [ "$round" = 1 ]; }; then b="$(theirs 1 -p 0 -n 64 -d "$past")"; fi
    record "decode$past" "$a" "$b"
  done
done
mneme_say "durability"
durability="$(build/release/tests/mneme_durability_cost "$mneme_model" "$text")"

printf '\n%-14s %14s %14s %8s   (tokens per second, medians; %s threads)\n' test mneme llama.cpp ratio "$threads"
python3 - "$results" "$durability" <<'PY'
import statistics, sys
rows = {}
for line in open(sys.argv[1]):
    name, ours, theirs = line.split()
    rows.setdefault(name, []).append((float(ours), None if theirs == "-" else float(theirs)))
out = []
short = {"prefill512": "prefill512", "prefill2048": "prefill2k", "prefill8192": "prefill8k", "decode0": "decode", "decode2048": "decode2k",
         "decode8192": "decode8k", "decode32768": "decode32k"}
for name, pairs in rows.items():
    ours = statistics.median(a for a, _ in pairs)
    theirs = [b for _, b in pairs if b]
    ratios = [a / b for a, b in pairs if b]
    ratio = statistics.median(ratios) if ratios else None
    print(f"{name:<14} {ours:>14.1f} {statistics.median(theirs) if theirs else float('nan'):>14.1f} {ratio if ratio else float('nan'):>8.2f}")
    out.append(f"{short[name]}_tps={ours:.1f}")
    if ratio:
        out.append(f"{short[name]}_ratio={ratio:.2f}")
print(sys.argv[2])
print(" ".join(out + [pair for pair in sys.argv[2].split() if "=" in pair]))
PY
