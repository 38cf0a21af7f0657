// Reading JSON that a person or a program wrote, strictly: every defect is an error that says where it is.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <mneme/error.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "samples/cli/line_reader.hpp"

namespace cli {

constexpr int kMaxJsonDepth = 32;

// One object that stands on a line of its own. Every failure is an Error(code) whose sentence begins with "line N: "
// and names the field or the column: not JSON, not UTF-8, a key twice in one object, deeper than kMaxJsonDepth, over
// kMaxLineBytes, not an object.
class JsonLine {
 public:
  JsonLine(const Line& line, mneme::errc code);

  // Throws unless each field of the object is one of these.
  void only(std::initializer_list<std::string_view> names) const;
  // The field, or nullptr where it is missing.
  const nlohmann::json* find(std::string_view name) const;
  // The field, which must be a string. `fallback` where it is missing; nullptr: then it must be there.
  std::string text(std::string_view name, const char* fallback = nullptr) const;

  [[noreturn]] void fail(std::string_view field, const std::string& what) const;

 private:
  mneme::errc code_;
  std::uint64_t number_;
  nlohmann::json object_;
};

}  // namespace cli
