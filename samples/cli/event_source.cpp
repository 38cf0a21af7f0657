#include "samples/cli/event_source.hpp"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <utility>

#include "samples/cli/json_line.hpp"
#include "samples/cli/report.hpp"

namespace cli {
namespace {

using nlohmann::json;
using TimePoint = std::chrono::system_clock::time_point;

constexpr std::size_t kMaxKindBytes = 64, kMaxKeyBytes = 512;

// RFC 3339, for instance 2026-01-31T12:00:00.5+01:00.
std::optional<TimePoint> from_rfc3339(const std::string& text) {
  using namespace std::chrono;
  int y = 0, mo = 0, d = 0, h = 0, mi = 0, used = 0;
  double s = 0;
  if (text.size() < 20 || text.find_first_not_of("0123456789-:.+TZ") != std::string::npos) return std::nullopt;
  if (std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%lf%n", &y, &mo, &d, &h, &mi, &s, &used) != 6) return std::nullopt;
  const year_month_day date{year(y), month(static_cast<unsigned>(mo)), day(static_cast<unsigned>(d))};
  const bool in_range =
      date.ok() && y >= 1700 && y < 2260 && h >= 0 && h < 24 && mi >= 0 && mi < 60 && s >= 0 && s < 61;
  if (!in_range) return std::nullopt;
  const std::string zone = text.substr(static_cast<std::size_t>(used));
  int zone_h = 0, zone_mi = 0, zone_used = 0;
  if (zone != "Z") {
    const bool parsed =
        zone.size() == 6 && std::sscanf(zone.c_str() + 1, "%2d:%2d%n", &zone_h, &zone_mi, &zone_used) == 2;
    if (!parsed || zone_used != 5 || (zone[0] != '+' && zone[0] != '-') || zone_h > 23 || zone_mi > 59)
      return std::nullopt;
  }
  const auto offset = (hours(zone_h) + minutes(zone_mi)) * (zone[0] == '-' ? -1 : 1);
  const auto fraction = duration_cast<system_clock::duration>(duration<double>(s));
  return TimePoint(sys_days(date)) + hours(h) + minutes(mi) + fraction - offset;
}

TimePoint time_of(const JsonLine& line, const json& value) {
  using namespace std::chrono;
  constexpr double kMaxSeconds = 8e9;  // within the range of the clock's 64-bit nanoseconds
  if (value.is_number()) {
    const double seconds = value.get<double>();
    if (!(std::abs(seconds) <= kMaxSeconds)) line.fail("time", "out of range");
    return TimePoint(duration_cast<system_clock::duration>(duration<double>(seconds)));
  }
  if (!value.is_string()) line.fail("time", std::string("neither a string nor a number but ") + value.type_name());
  const auto time = from_rfc3339(value.get<std::string>());
  if (!time)
    line.fail("time", "not of the form 2026-01-31T12:00:00Z: " + in_quotes(shortened(value.get<std::string>(), 40)));
  return *time;
}

mneme::Trust trust_of(const JsonLine& line, const std::string& name) {
  static const std::map<std::string, mneme::Trust> names = {{"untrusted", mneme::Trust::untrusted},
                                                            {"observation", mneme::Trust::observation},
                                                            {"user", mneme::Trust::user},
                                                            {"system", mneme::Trust::system}};
  const auto found = names.find(name);
  if (found == names.end()) {
    line.fail("trust", "not one of untrusted, observation, user, system: " + in_quotes(shortened(name, 40)));
  }
  return found->second;
}

void require_size(const JsonLine& line, const char* field, const std::string& text, std::size_t min, std::size_t max) {
  if (text.size() >= min && text.size() <= max) return;
  line.fail(field,
            std::to_string(text.size()) + " bytes; it must have " + std::to_string(min) + " to " + std::to_string(max));
}

std::string body_of(const JsonLine& line) {
  const json* value = line.find("body");
  if (value == nullptr || !value->is_structured()) return line.text("body");
  return value->dump();
}

mneme::Event make_event(const JsonLine& line) {
  line.only({"kind", "body", "key", "source", "time", "trust", "pin"});
  const std::string body = body_of(line);
  require_size(line, "body", body, 1, mneme::kMaxEventBytes);
  const bool is_observed = line.find("source") != nullptr;
  const std::string kind = line.text("kind", is_observed ? "observation" : nullptr);
  require_size(line, "kind", kind, 1, kMaxKindBytes);
  if (is_observed && kind != "observation") line.fail("source", "only an event of kind \"observation\" has one");
  mneme::Event event = is_observed ? mneme::Event::observation(line.text("source"), body) : mneme::Event(kind, body);
  if (is_observed) require_size(line, "source", event.source(), 1, kMaxKindBytes);
  if (!is_observed && kind == "user") event = mneme::Event::user(body);
  if (!is_observed && kind == "system") event = mneme::Event::system(body);

  const std::string key = line.text("key", "");
  require_size(line, "key", key, 0, kMaxKeyBytes);
  event.key(key);
  if (const json* time = line.find("time")) event.time(time_of(line, *time));
  if (line.find("trust") != nullptr) event.trust(trust_of(line, line.text("trust")));
  if (const json* pin = line.find("pin")) {
    if (!pin->is_boolean()) line.fail("pin", std::string("neither true nor false but ") + pin->type_name());
    if (pin->get<bool>()) event.pin();
  }
  return event;
}

bool is_blank(const std::string& text) {
  return text.find_first_not_of(" \t\r\f\v") == std::string::npos;
}

}  // namespace

std::optional<SourcedEvent> EventSource::next() {
  return options_.plain_text ? next_text() : next_object();
}

std::optional<SourcedEvent> EventSource::next_object() {
  while (auto line = lines_.next()) {
    if (is_blank(line->text)) continue;
    SourcedEvent made{line->number, lines_.bytes_read(), make_event(JsonLine(*line, mneme::errc::invalid_event))};
    set_key(made.event, made.line);
    return made;
  }
  return std::nullopt;
}

std::optional<SourcedEvent> EventSource::next_text() {
  std::string body;
  std::uint64_t first_line = 0;
  bool after_blank = false;
  while (auto line = lines_.next()) {
    if (line->over_long) {
      throw mneme::Error(mneme::errc::invalid_event, "line " + std::to_string(line->number) + ": longer than " +
                                                         std::to_string(kMaxLineBytes) + " bytes");
    }
    if (is_blank(line->text)) {
      if (!body.empty() && body.size() >= options_.event_bytes) break;
      after_blank = true;
      continue;
    }
    if (body.empty()) first_line = line->number;
    body += (body.empty() ? "" : after_blank ? "\n\n" : "\n") + line->text;
    after_blank = false;
  }
  if (body.empty()) return std::nullopt;
  if (body.size() > mneme::kMaxEventBytes) {
    throw mneme::Error(mneme::errc::invalid_event, "line " + std::to_string(first_line) + ": the paragraph has " +
                                                       std::to_string(body.size()) + " bytes; an event has at most " +
                                                       std::to_string(mneme::kMaxEventBytes));
  }
  SourcedEvent made{first_line, lines_.bytes_read(), mneme::Event(options_.kind, std::move(body))};
  set_key(made.event, first_line);
  return made;
}

void EventSource::set_key(mneme::Event& event, std::uint64_t line) const {
  if (!options_.key_prefix.empty() && event.key().empty()) event.key(options_.key_prefix + std::to_string(line));
}

}  // namespace cli
