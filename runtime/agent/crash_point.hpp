// Named places where a test may let the process die, as kill -9 would.
#pragma once

namespace mneme::agent {

// In builds with MNEME_CRASH_POINTS: if the environment variable MNEME_KILL is "<point>:<n>", the n-th call for that
// point (counted over all threads, from 1) ends the process at once with status 137: no destructor, no flush, no
// handler. Otherwise, and in other builds, does nothing.
#ifdef MNEME_CRASH_POINTS
void crash_point(const char* point) noexcept;
#else
inline void crash_point(const char*) noexcept {}
#endif

}  // namespace mneme::agent
