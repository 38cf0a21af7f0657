// Named places where a test may let the process die, as kill -9 would.
#pragma once

namespace mneme::agent {

// Does nothing. A test program that brings its own definition (tests/support/crash_point_env.cpp) is linked with that
// one instead.
void crash_point(const char* point) noexcept;

}  // namespace mneme::agent
