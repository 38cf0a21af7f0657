// The version of these headers, and what the library says about itself.
#pragma once

#include <boost/version.hpp>
#include <cstdint>

// Types of Boost are in the signatures below: headers and library must come from one Boost.
static_assert(BOOST_VERSION / 100 >= 1081, "mneme needs Boost 1.81 or newer");

#define MNEME_VERSION_MAJOR 0
#define MNEME_VERSION_MINOR 1
#define MNEME_VERSION_PATCH 0

#define MNEME_API __attribute__((visibility("default")))

namespace mneme {
inline namespace v1 {

// The version these headers were written for. A Runtime refuses to be made by headers of another version.
constexpr std::uint32_t kHeaderVersion = MNEME_VERSION_MAJOR * 10000 + MNEME_VERSION_MINOR * 100 + MNEME_VERSION_PATCH;

// The library's version, as "0.1.0" and as the number above. Any thread.
MNEME_API const char* version() noexcept;
MNEME_API std::uint32_t version_number() noexcept;

}  // namespace v1
}  // namespace mneme
