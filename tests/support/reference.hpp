// Where the independent reference data lies, when it is at hand.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>

namespace mneme::test {

// The directory named by MNEME_REFERENCE_DIR, or nothing: then the cases that need it skip with a reason.
inline std::optional<std::filesystem::path> reference_dir() {
  const char* value = std::getenv("MNEME_REFERENCE_DIR");
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::filesystem::path(value);
}

// Small data checked in under tests/data.
inline std::filesystem::path data_dir() {
  return MNEME_TEST_DATA_DIR;
}

// The path of the real test model (SmolLM2-135M-Instruct, Q4_1) named by MNEME_TEST_MODEL, or nothing: then its cases
// skip.
inline std::optional<std::filesystem::path> real_model() {
  const char* value = std::getenv("MNEME_TEST_MODEL");
  if (value == nullptr || *value == '\0' || !std::filesystem::exists(value)) return std::nullopt;
  return std::filesystem::path(value);
}

// The whole file as bytes; throws std::runtime_error if it cannot be read.
inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace mneme::test
