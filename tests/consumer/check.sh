#!/usr/bin/env bash
# Installs a finished build into an empty directory and consumes it by find_package and by pkg-config.
#   tests/consumer/check.sh BUILD_DIR
set -euo pipefail
build="$(cd "$1" && pwd)"
here="$(cd "$(dirname "$0")" && pwd)"
samples="$here/../../samples"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$work/prefix" -DMNEME_SAMPLES_DIR="$samples" \
  >"$work/configure.log"
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }

pc="$(find "$work/prefix" -name mneme.pc -printf '%h\n')"
flags="$(PKG_CONFIG_PATH="$pc" pkg-config --cflags --libs mneme)"
# shellcheck disable=SC2086
g++ -std=c++20 -Wall -Wextra -Werror "$samples/quickstart_callbacks.cpp" -o "$work/by_pkg_config" $flags

# Without its model file the program reports the typed error and exits with 1: it links, runs and throws across the library boundary.
for program in "$work/build/quickstart_callbacks" "$work/by_pkg_config"; do
  status=0
  (cd "$work" && "$program") >"$work/out" 2>&1 || status=$?
  if [ "$status" != 1 ] || ! grep -q smollm2.gguf "$work/out"; then
    echo "unexpected end of $program: status $status"
    cat "$work/out"
    exit 1
  fi
done
echo "find_package and pkg-config both work"
