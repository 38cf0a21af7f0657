#!/usr/bin/env bash
# How much of a distant passage the memory gives back, for both selectors: a passage of 128 tokens is read, then NEAR or FAR
# tokens of other text, then its heading again and the passage again. The mean negative log-likelihood of the second reading
# (from its 9th token on) tells whether the first was seen. Beside it full attention and the window alone (K = 0).
#   tests/eval/echo.sh [--passages N] [--near N] [--far N] [--seed N] [--reading decode|prefill] [--device auto|cpu|cuda:N]
# decode: the second reading goes token by token, each with its own selection; prefill: in one chunk with its heading.
# recovered = (window - memory) / (window - full), full attention at NEAR, where the model still is within its native context.
# A table, then a name=value line. About two minutes a passage on 2 cores at the default 3,000 and 12,000 tokens.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/support/setup.sh

passages=8 near=3000 far=12000 seed=1 reading=decode device=auto
while [ $# -gt 0 ]; do
  case "$1" in
    --passages) passages="${2:?}" ;;
    --near) near="${2:?}" ;;
    --far) far="${2:?}" ;;
    --seed) seed="${2:?}" ;;
    --reading) reading="${2:?}" ;;
    --device) device="${2:?}" ;;
    *) sed -n '2,8p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
case "$reading" in decode|prefill) ;; *) echo "--reading is decode or prefill" >&2; exit 2 ;; esac
mneme_install_packages
mneme_fetch_model
mneme_build release mneme_cli

python3 - "$mneme_build_dir/samples/mneme" "$mneme_model" "$passages" "$near" "$far" "$seed" "$reading" "$device" <<'PY'
import json, random, statistics, subprocess, sys, time

mneme, model = sys.argv[1:3]
n_passages, near, far, seed = map(int, sys.argv[3:7])
reading, device = sys.argv[7:9]
kPassage, kOpening, kSkipped = 128, 512, 8
licences = "/usr/share/common-licenses/"


def run(arguments, lines):
    done = subprocess.run([mneme, *arguments, "--model", model], input="".join(json.dumps(l) + "\n" for l in lines),
                          stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def read(names):
    return "\n\n".join(open(licences + name, encoding="utf-8", errors="ignore").read() for name in names)


# Passages come from texts that the filler does not quote.
sources = read(["Apache-2.0", "Artistic", "CC0-1.0", "MPL-2.0"])
filler = read(["GPL-3", "GFDL-1.3", "LGPL-2.1", "GPL-1"])
tokens = run(["tokenize"], [{"text": sources}, {"text": filler}, {"text": "\n\nChapter 7. The Lamp\n\n"}])
sources, filler, cue = (line["ids"] for line in tokens)
rng = random.Random(seed)
starts = rng.sample(range(0, len(sources) - kPassage, kPassage), n_passages)


def stream(start, distance):
    passage = sources[start:start + kPassage]
    text = filler
    while len(text) < kOpening + distance:
        text = text + filler
    ids = text[:kOpening] + cue + passage + text[kOpening:kOpening + distance] + cue
    # Cut before the heading: a chunk of the filler must not cast votes for the passage's chunk.
    segments = [[len(ids) - len(cue), "prefill"]]
    segments += [[len(cue), "prefill"], [kPassage, "decode"]] if reading == "decode" else [[len(cue) + kPassage, "prefill"]]
    return {"ids": ids + passage, "segments": segments}


def mean_nll(line):  # nll[i] belongs to token i + 1
    return statistics.mean(line["nll"][-(kPassage - kSkipped):])


systems = [("full attention", ["--full"], [near]),
           ("window alone (K 0)", ["--memory", '{"topk":0}'], [near, far]),
           ("representatives", ["--memory", '{"selector":"representatives"}'], [near, far]),
           ("two_stage (default)", ["--memory", '{"selector":"two_stage"}'], [near, far])]
nll, seconds = {}, {}
for name, arguments, distances in systems:
    for distance in distances:
        began = time.monotonic()
        nll[name, distance] = [mean_nll(line) for line in
                               run(["score", "--device", device, *arguments], [stream(start, distance) for start in starts])]
        seconds[name, distance] = (time.monotonic() - began) / n_passages
        print(f"== {name}, {distance} tokens: {seconds[name, distance]:.1f} s a passage", file=sys.stderr)

full = statistics.mean(nll["full attention", near])


def recovered(name, distance):
    window = statistics.mean(nll["window alone (K 0)", distance])
    return (window - statistics.mean(nll[name, distance])) / (window - full)


print(f"seed {seed}, {n_passages} passages of {kPassage} tokens; mean NLL of the second reading ({reading}), recovered share")
print(f"{'':<22}{f'after {near} tokens':>26}{f'after {far} tokens':>26}")
for name, _, distances in systems:
    cells = [f"{statistics.mean(nll[name, d]):.3f}" + (f" ({recovered(name, d):.2f})" if d in distances else "")
             for d in distances]
    print(f"{name:<22}" + "".join(f"{cell:>26}" for cell in cells))
print(" ".join(f"{short}_{where}={recovered(name, d):.3f}" for name, short in
               (("representatives", "representatives"), ("two_stage (default)", "two_stage"))
               for where, d in (("near", near), ("far", far))) +
      f" full_nll={full:.3f} passages={n_passages} reading={reading} seed={seed}")
PY
