#!/usr/bin/env bash
# The main job, end to end: an agent is told a fact, reads several times its model's native context, is killed with
# SIGKILL in the middle, resumes, reads on, and answers; beside it the same model with its window alone.
#   samples/demo.sh [--fact TEXT] [--question TEXT] [--answer TEXT] [--tokens N] [--store FILE]
#     --fact      what the agent is told            --question  what it is asked at the end
#     --answer    what its answer must contain      (default: the first number of the fact, else its last word)
#     --tokens    how much it reads in between, about (default 24,576: three times the model's 8,192)
#     --store     a database file to use and keep   (default: a temporary one)
#     --device    auto, cpu or cuda:N               (default: auto)
# Ends with 0 if the answer contains the fact, with 1 if it does not. MNEME_MODEL names another GGUF file.
set -euo pipefail
called_from="$PWD"
cd "$(dirname "$0")/.."
. tests/support/setup.sh
. samples/demo_text.sh

fact="The pass key is 48213. Remember it. 48213 is the pass key."
question="Which number is the pass key?"
answer="" tokens=24576 store="" device=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --fact) fact="${2:?}" ;;
    --question) question="${2:?}" ;;
    --answer) answer="${2:?}" ;;
    --tokens) tokens="${2:?}" ;;
    --store) store="$(cd "$called_from" && realpath -m "${2:?}")" ;;
    --device) device="${2:?}" ;;
    *) sed -n '4,10p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
case "$tokens" in ''|*[!0-9]*) echo "--tokens needs a number" >&2; exit 2 ;; esac
[ -n "$answer" ] || answer="$(grep -oE '[0-9]+' <<<"$fact" | head -n 1 || true)"
[ -n "$answer" ] || answer="$(grep -oE "[[:alpha:]'-]+" <<<"$fact" | tail -n 1)"

mneme_install_packages
mneme_fetch_model
mneme_build release mneme_cli
started=$SECONDS

work="$(mktemp -d)"
feeder=""
trap '[ -z "$feeder" ] || kill -9 "$feeder" 2>/dev/null || true; rm -rf "$work"' EXIT
mneme="$mneme_build_dir/samples/mneme"
if [ -z "$store" ]; then store="$work/demo.db"; elif [ -e "$store" ]; then
  echo "$store exists; --store names a new file" >&2
  exit 2
fi
n_init=64 n_local=1024 # of this model's preset: what the window alone sees

# feed AGENT OPTIONS... FILE: the paragraphs of a text become events of about 1,500 bytes.
feed() {
  "$mneme" feed --model "$mneme_model" --device "$device" --store "$store" --agent "$1" --text --event-bytes 1500 "${@:2}"
}
read_tokens() { "$mneme" inspect "$store" "$1" 2>/dev/null | sed -n 's/^tokens: *\([0-9]*\).*/\1/p'; }
value() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" "$2" | tail -n 1; }

demo_text "$work" "$tokens"

mneme_say "The agent reads a page, and then it is told: $fact"
feed demo --quiet --kind text "$work/intro.txt" >/dev/null
printf '%s\n' "$fact" >"$work/fact.txt"
feed demo --quiet --kind note "$work/fact.txt" >/dev/null
told_at="$(read_tokens demo)"

mneme_say "It reads about $tokens tokens of licence texts. In the middle the process is killed with SIGKILL."
stream=(demo --progress --kind text --key-prefix stream- "$work/stream.txt")
# A process of its own, so that the signal hits `mneme` itself.
"$mneme" feed --model "$mneme_model" --device "$device" --store "$store" --agent "${stream[0]}" --text \
  --event-bytes 1500 "${stream[@]:1}" >/dev/null &
feeder=$!
while kill -0 $feeder 2>/dev/null && [ "$(read_tokens demo)" -lt $((told_at + tokens / 2)) ]; do sleep 0.3; done
kill -9 $feeder 2>/dev/null || true
wait $feeder 2>/dev/null || true
feeder=""
mneme_say "Killed. The store says that $(read_tokens demo) tokens are read."

mneme_say "It is started again with the same file; the events that it has are not read twice."
feed "${stream[@]}" | tee "$work/feed"
n_stream="$("$mneme" inspect "$store" demo --events | grep -c '"key":"stream-')"
n_keys="$("$mneme" inspect "$store" demo --events | grep -o '"key":"stream-[0-9]*"' | sort -u | wc -l)"
if [ "$n_keys" != "$n_stream" ]; then
  echo "an event was accepted twice" >&2
  exit 1
fi
mneme_say "$n_stream events of the stream, none twice; $(($(read_tokens demo) - told_at)) tokens since the fact."

ask() {
  "$mneme" ask --model "$mneme_model" --device "$device" --store "$store" --agent "$1" --max-tokens 32 "${@:2}" "$question"
}
mneme_say "Asked: $question"
ask demo --trace 2>"$work/ask.err" | tee "$work/answer.txt" || { cat "$work/ask.err" >&2; exit 1; }
sed -n '/^recalled/,/^turn=/{/^turn=/!p}' "$work/ask.err" | head -n 24 >&2
recalled="$(if grep -qF '[note]' "$work/ask.err"; then echo yes; else echo no; fi)"

mneme_say "The same model with its window alone (K = 0). It was given only the first page and the last 4,096 tokens or so of the"
mneme_say "same text: it attends the first $n_init and the last $n_local tokens, the fact is far outside. It answers:"
feed window --quiet --memory '{"topk":0}' --kind text "$work/intro.txt" >/dev/null
feed window --quiet --memory '{"topk":0}' --kind text "$work/end.txt" >/dev/null
ask window --memory '{"topk":0}' 2>"$work/window.err" | tee "$work/window.txt" || { cat "$work/window.err" >&2; exit 1; }

verdict() { if grep -qiF -- "$answer" "$1"; then echo yes; else echo no; fi; }
known="$(verdict "$work/answer.txt")"
mneme_say "Figures"
printf '%s\n' "reading: $(value tok_per_s "$work/feed") tok/s; answering: $(value decode_tok_per_s "$work/ask.err") tok/s" \
  "memory: $(value resident_mib "$work/feed") MiB resident: weights $(value weights_mib "$work/feed"), unit slots and window $(value units_mib "$work/feed"), cache of units and index $(value cache_mib "$work/feed"), mapped files $(value mapped_mib "$work/feed")" \
  "disk: $(value database_mib "$work/ask.err") MiB for $(read_tokens demo) tokens" \
  "time after set-up: $((SECONDS - started)) s"
echo "answer_has_fact=$known recalled_fact_unit=$recalled window_has_fact=$(verdict "$work/window.txt") tokens=$(read_tokens demo) seconds=$((SECONDS - started))"
[ "$known" = yes ]
