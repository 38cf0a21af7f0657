// The end of a failed MNEME_CHECK.
#include <cstdio>
#include <cstdlib>
#include <mneme/base/check.hpp>

namespace mneme {
inline namespace v1 {

void check_failed(const char* expression, const char* file, int line) noexcept {
  std::fprintf(stderr, "mneme: internal check failed: %s (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace v1
}  // namespace mneme
