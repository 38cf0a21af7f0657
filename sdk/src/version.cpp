// See <mneme/version.hpp>.
#include <mneme/version.hpp>

#define MNEME_TEXT_OF(x) #x
#define MNEME_TEXT(x) MNEME_TEXT_OF(x)

namespace mneme {
inline namespace v1 {

const char* version() noexcept {
  return MNEME_TEXT(MNEME_VERSION_MAJOR) "." MNEME_TEXT(MNEME_VERSION_MINOR) "." MNEME_TEXT(MNEME_VERSION_PATCH);
}

std::uint32_t version_number() noexcept {
  return kHeaderVersion;
}

}  // namespace v1
}  // namespace mneme
