// Reads the include graph of the source tree and fails on any edge that the design does not allow.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace {

namespace fs = std::filesystem;

struct Include {
  std::string from;  // path below the root
  std::string target;
};

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

std::vector<Include> includes_of(const fs::path& root) {
  std::vector<Include> found;
  for (const char* directory : {"sdk", "gpu", "memory", "persistence", "runtime", "samples"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / directory)) {
      const std::string extension = entry.path().extension().string();
      const std::set<std::string> sources = {".hpp", ".cpp", ".h", ".cu", ".cuh"};
      if (sources.count(extension) == 0) continue;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) {
        if (!starts_with(line, "#include ")) continue;
        const std::size_t begin = line.find_first_of("<\"") + 1;
        const std::size_t end = line.find_first_of(">\"", begin);
        found.push_back({fs::relative(entry.path(), root).string(), line.substr(begin, end - begin)});
      }
    }
  }
  return found;
}

std::string layer_of(const std::string& path) {
  for (const char* layer :
       {"gpu/", "memory/", "persistence/", "runtime/model/", "runtime/agent/", "sdk/src/", "samples/"}) {
    if (starts_with(path, layer)) return layer;
  }
  if (starts_with(path, "mneme/")) return "public/";
  if (starts_with(path, "sdk/include/")) return "public/";
  return "";
}

// The vocabulary that every layer may include.
bool is_base(const std::string& target) {
  return target == "mneme/error.hpp" || starts_with(target, "mneme/base/");
}

// Plain values of the public API, which the agent runtime speaks too.
bool is_value(const std::string& target) {
  static const std::set<std::string> values = {"mneme/event.hpp", "mneme/options.hpp", "mneme/types.hpp",
                                               "mneme/version.hpp"};
  return values.count(target) == 1;
}

const std::map<std::string, std::set<std::string>>& allowed() {
  static const std::map<std::string, std::set<std::string>> table = {
      {"public/", {"public/"}},
      {"gpu/", {"gpu/"}},
      {"memory/", {"gpu/", "memory/"}},
      {"persistence/", {"persistence/"}},  // and memory's plain unit headers, below
      {"runtime/model/", {"gpu/", "memory/", "runtime/model/"}},
      {"runtime/agent/", {"gpu/", "memory/", "persistence/", "runtime/model/", "runtime/agent/"}},
      {"sdk/src/", {"public/", "gpu/", "memory/", "persistence/", "runtime/model/", "runtime/agent/", "sdk/src/"}},
      {"samples/", {"public/", "samples/"}}};
  return table;
}

bool is_allowed(const Include& include) {
  const std::string from = layer_of(include.from);
  const std::string to = layer_of(include.target);
  if (to.empty() || is_base(include.target) || starts_with(include.from, "sdk/src/base/")) return true;
  if (from == "runtime/agent/" && is_value(include.target)) return true;
  if (from == "persistence/" &&
      (include.target == "memory/unit_store.hpp" || include.target == "memory/unit_image.hpp")) {
    return true;
  }
  return allowed().at(from).count(to) == 1;
}

}  // namespace

TEST_CASE("layers include only what the design allows") {
  for (const Include& include : includes_of(MNEME_SOURCE_DIR)) {
    CAPTURE(include.from);
    CAPTURE(include.target);
    CHECK(is_allowed(include));
  }
}

TEST_CASE("Asio stays in the runtime shell and the SDK, SQLite in one file, CUDA in its backend") {
  for (const Include& include : includes_of(MNEME_SOURCE_DIR)) {
    CAPTURE(include.from);
    CAPTURE(include.target);
    const std::string layer = layer_of(include.from);
    if (starts_with(include.target, "boost/asio"))
      CHECK((layer == "runtime/agent/" || layer == "sdk/src/" || layer == "public/" || layer == "samples/"));
    if (include.target == "sqlite3.h") CHECK(starts_with(include.from, "persistence/db."));
    if (starts_with(include.target, "cuda") || starts_with(include.target, "cublas"))
      CHECK(starts_with(include.from, "gpu/cuda/"));
    if (layer == "public/") {
      CHECK(include.target != "boost/asio.hpp");
      CHECK(include.target != "nlohmann/json.hpp");
    }
  }
}
