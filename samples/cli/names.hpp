// The words that the commands print and read for the values of the API's enums.
#pragma once

#include <mneme/event.hpp>
#include <mneme/types.hpp>

namespace cli {

constexpr const char* name_of(mneme::Finish finish) {
  switch (finish) {
    case mneme::Finish::open:
      return "open";
    case mneme::Finish::stop:
      return "stop";
    case mneme::Finish::length:
      return "length";
    case mneme::Finish::cancelled:
      return "cancelled";
    case mneme::Finish::deadline:
      return "deadline";
    case mneme::Finish::tool:
      return "tool";
    case mneme::Finish::error:
      return "error";
    case mneme::Finish::interrupted:
      return "interrupted";
  }
  return "unknown";
}

constexpr const char* name_of(mneme::Trust trust) {
  switch (trust) {
    case mneme::Trust::untrusted:
      return "untrusted";
    case mneme::Trust::observation:
      return "observation";
    case mneme::Trust::user:
      return "user";
    case mneme::Trust::system:
      return "system";
  }
  return "unknown";
}

}  // namespace cli
