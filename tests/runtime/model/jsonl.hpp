// Lines of JSON with golden results, from the reference directory if it is at hand, else the chosen lines in
// tests/data.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/reference.hpp"

namespace mneme::test {

inline std::vector<nlohmann::json> read_jsonl(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// `name` is a path below model/ of the reference directory and below tests/data.
inline std::vector<nlohmann::json> golden_lines(const std::filesystem::path& name) {
  if (const auto directory = reference_dir()) return read_jsonl(*directory / "model" / name);
  return read_jsonl(data_dir() / name);
}

// Counts cases that differ and shows the first few, so that one wrong rule does not flood the log.
class Differences {
 public:
  void add(const std::string& description) {
    if (++count_ <= 5) MESSAGE(description);
  }
  std::size_t count() const { return count_; }

 private:
  std::size_t count_ = 0;
};

}  // namespace mneme::test
