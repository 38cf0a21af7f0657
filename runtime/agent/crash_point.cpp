// The crash points of programs that are no tests. Alone in its file, so that a test's definition can stand in for it.
#include "runtime/agent/crash_point.hpp"

namespace mneme::agent {

void crash_point(const char*) noexcept {}

}  // namespace mneme::agent
