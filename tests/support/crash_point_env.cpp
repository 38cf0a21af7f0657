// crash_point() for tests: linked into a program before the library, it replaces the library's own, which does nothing.
// If the environment variable MNEME_KILL is "<point>:<n>", the n-th call for that point (counted over all threads, from
// 1) ends the process at once with status 137: no destructor, no flush, no handler.
#include "runtime/agent/crash_point.hpp"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

namespace mneme::agent {
namespace {

struct Plan {
  std::string point;
  long hits = 0;
};

Plan read_plan() {
  const char* value = std::getenv("MNEME_KILL");
  if (value == nullptr) return {};
  const std::string_view text(value);
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return {};
  return {std::string(text.substr(0, colon)), std::strtol(value + colon + 1, nullptr, 10)};
}

}  // namespace

void crash_point(const char* point) noexcept {
  static const Plan plan = read_plan();
  static std::atomic<long> hits{0};
  if (plan.point.empty() || plan.point != point) return;
  if (hits.fetch_add(1) + 1 == plan.hits) _exit(137);
}

}  // namespace mneme::agent
