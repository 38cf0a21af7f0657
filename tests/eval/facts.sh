#!/usr/bin/env bash
# How often the test model recalls a fact: for each fact a new agent reads a page, is told the fact, reads TOKENS tokens of
# licence texts, and is asked. Beside it the same model with its window alone (K = 0). A table, then a name=value line.
#   tests/eval/facts.sh [--facts N] [--tokens N] [--seed N] [--device auto|cpu|cuda:N]
# A minute or two a fact on 2 cores at the default 24,576 tokens.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/support/setup.sh

n_facts=20 tokens=24576 seed=1 device=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --facts) n_facts="${2:?}" ;;
    --tokens) tokens="${2:?}" ;;
    --seed) seed="${2:?}" ;;
    --device) device="${2:?}" ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
mneme_install_packages
mneme_fetch_model
mneme_build release mneme_cli
. samples/demo_text.sh

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mneme="$mneme_build_dir/samples/mneme"
demo_text "$work" "$tokens"

# Tab-separated: what is told, what is asked, what the answer must contain. Four kinds in turn.
python3 - "$n_facts" "$seed" >"$work/facts" <<'PY'
import random, sys
rng = random.Random(int(sys.argv[2]))
colours, animals = ["red", "blue", "green", "black", "white"], ["horse", "tiger", "eagle", "snake", "whale"]
names, things = ["Anna", "Boris", "Clara", "David", "Elena"], ["locker", "safe", "garage", "boat", "office"]
cities = ["Lisbon", "Oslo", "Vienna", "Cairo", "Toronto", "Nairobi", "Madrid", "Prague"]
for i in range(int(sys.argv[1])):
    value, kind = rng.randint(10000, 99999), i % 4
    if kind == 3:
        name, value = rng.choice(names), rng.choice(cities)
        told = f"{name} lives in {value}. Remember it. {value} is the city where {name} lives."
        asked = f"Which city does {name} live in?"
    else:
        what = ["pass key", f"code for the {rng.choice(colours)} {rng.choice(animals)}",
                f"code of {rng.choice(names)}'s {rng.choice(things)}"][kind]
        told, asked = f"The {what} is {value}. Remember it. {value} is the {what}.", f"Which number is the {what}?"
    print(told, asked, value, sep="\t")
PY

# read_files STORE MEMORY_JSON FILE...: an agent reads the files; each file's name is the kind of its events.
read_files() {
  for file in "${@:3}"; do
    "$mneme" feed --model "$mneme_model" --device "$device" --agent a --memory "$2" --quiet --store "$1" --text --event-bytes 1500 \
      --kind "$(basename "$file" .txt)" "$file" >/dev/null </dev/null
  done
}
# ask STORE MEMORY_JSON: the answer to $question, on one line.
ask() {
  "$mneme" ask --model "$mneme_model" --device "$device" --agent a --memory "$2" --quiet --store "$1" --max-tokens 32 "$question" </dev/null |
    tr '\n\t' '  '
}
verdict() { if grep -qiF -- "$expected" <<<"$1"; then echo yes; else echo no; fi; }

# The window alone never sees the fact, so one agent serves all the questions, each asked of a copy of it.
read_files "$work/window.db" '{"topk":0}' "$work/intro.txt" "$work/end.txt"

recalled=0 window=0 i=0
echo "seed $seed, $tokens tokens between fact and question"
printf '%-3s %-8s %-7s %-58s %s\n' "#" recalled window question answer
while IFS=$'\t' read -r fact question expected; do
  i=$((i + 1))
  printf '%s\n' "$fact" >"$work/note.txt"
  rm -f "$work"/fact.db* "$work"/copy.db*
  read_files "$work/fact.db" '{}' "$work/intro.txt" "$work/note.txt" "$work/stream.txt"
  answer="$(ask "$work/fact.db" '{}')"
  "$mneme" backup "$work/window.db" "$work/copy.db" >/dev/null
  alone="$(ask "$work/copy.db" '{"topk":0}')"
  [ "$(verdict "$answer")" = no ] || recalled=$((recalled + 1))
  [ "$(verdict "$alone")" = no ] || window=$((window + 1))
  printf '%-3s %-8s %-7s %-58s %s\n' "$i" "$(verdict "$answer")" "$(verdict "$alone")" "$question ($expected)" "${answer:0:70}"
done <"$work/facts"
echo "facts=$i recalled=$recalled window_alone=$window tokens=$tokens seed=$seed"
