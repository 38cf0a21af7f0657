// See <mneme/event.hpp>.
#include <cmath>
#include <mneme/error.hpp>
#include <mneme/event.hpp>
#include <nlohmann/json.hpp>
#include <utility>

namespace mneme {
inline namespace v1 {
namespace {

constexpr int kMaxJsonDepth = 32;

void check_json(const nlohmann::json& value, int depth) {
  if (depth > kMaxJsonDepth) {
    throw Error(errc::invalid_event, "event JSON is nested deeper than " + std::to_string(kMaxJsonDepth));
  }
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    throw Error(errc::invalid_event, "event JSON holds a number that is not finite");
  }
  for (const nlohmann::json& child : value) {
    if (value.is_structured()) check_json(child, depth + 1);
  }
}

Trust trust_by_kind(const std::string& kind) {
  if (kind == "user") return Trust::user;
  if (kind == "system") return Trust::system;
  if (kind == "observation") return Trust::observation;
  return Trust::untrusted;
}

}  // namespace

Event::Event(std::string kind, std::string body, std::string key)
    : kind_(std::move(kind)), body_(std::move(body)), key_(std::move(key)), trust_(trust_by_kind(kind_)) {}

Event Event::user(std::string body) {
  return {"user", std::move(body)};
}

Event Event::system(std::string body) {
  return {"system", std::move(body)};
}

Event Event::observation(std::string source, std::string body) {
  Event event("observation", std::move(body));
  event.source_ = std::move(source);
  return event;
}

Event Event::json(std::string kind, const nlohmann::json& value) {
  check_json(value, 1);
  try {
    return {std::move(kind), value.dump()};
  } catch (const nlohmann::json::exception& e) {
    throw Error(errc::invalid_event, std::string("event JSON cannot be written: ") + e.what());
  }
}

Event& Event::key(std::string value) & {
  key_ = std::move(value);
  return *this;
}
Event&& Event::key(std::string value) && {
  return std::move(key(std::move(value)));
}
Event& Event::time(std::chrono::system_clock::time_point value) & {
  time_ = value;
  return *this;
}
Event&& Event::time(std::chrono::system_clock::time_point value) && {
  return std::move(time(value));
}
Event& Event::trust(Trust value) & {
  trust_ = value;
  return *this;
}
Event&& Event::trust(Trust value) && {
  return std::move(trust(value));
}
Event& Event::pin() & {
  pinned_ = true;
  return *this;
}
Event&& Event::pin() && {
  return std::move(pin());
}

}  // namespace v1
}  // namespace mneme
