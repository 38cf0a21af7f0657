#include "samples/cli/json_line.hpp"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "samples/cli/report.hpp"

namespace cli {
namespace {

using nlohmann::json;

// Watches the parser for what its grammar allows and we do not.
class StrictObserver {
 public:
  // `prefix` begins the sentences.
  StrictObserver(mneme::errc code, std::string prefix) : code_(code), prefix_(std::move(prefix)) {}

  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (depth >= kMaxJsonDepth &&
        (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start)) {
      throw mneme::Error(code_, prefix_ + "nested deeper than " + std::to_string(kMaxJsonDepth));
    }
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        throw mneme::Error(code_, prefix_ + "field " + in_quotes(shortened(key, 64)) + " stands twice in one object");
      }
    }
    return true;
  }

 private:
  mneme::errc code_;
  std::string prefix_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open, outermost first
};

// "column 9: ..." of the parser's message, without its prefix.
std::string reason(const json::exception& error) {
  const std::string message = error.what();
  const std::size_t column = message.find("column ");
  const std::size_t id = message.find("] ");
  if (column != std::string::npos) return shortened(message.substr(column), 160);
  return shortened(id == std::string::npos ? message : message.substr(id + 2), 160);
}

}  // namespace

JsonLine::JsonLine(const Line& line, mneme::errc code) : code_(code), number_(line.number) {
  const std::string prefix = "line " + std::to_string(line.number) + ": ";
  if (line.over_long) {
    throw mneme::Error(code, prefix + "longer than " + std::to_string(kMaxLineBytes) + " bytes");
  }
  StrictObserver observer(code, prefix);
  try {
    object_ = json::parse(line.text, std::ref(observer));
  } catch (const json::exception& error) {
    throw mneme::Error(code, prefix + "not JSON: " + reason(error));
  }
  if (!object_.is_object()) throw mneme::Error(code, prefix + "not a JSON object but " + object_.type_name());
}

void JsonLine::only(std::initializer_list<std::string_view> names) const {
  for (const auto& [name, value] : object_.items()) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    std::string known;
    for (const std::string_view each : names) known += (known.empty() ? "" : ", ") + std::string(each);
    fail(name, "not known; the fields are " + known);
  }
}

const json* JsonLine::find(std::string_view name) const {
  const auto found = object_.find(std::string(name));
  return found == object_.end() ? nullptr : &*found;
}

std::string JsonLine::text(std::string_view name, const char* fallback) const {
  const json* value = find(name);
  if (value == nullptr && fallback != nullptr) return fallback;
  if (value == nullptr) fail(name, "missing");
  if (!value->is_string()) fail(name, std::string("not a string but ") + value->type_name());
  return value->get<std::string>();
}

void JsonLine::fail(std::string_view field, const std::string& what) const {
  throw mneme::Error(code_,
                     "line " + std::to_string(number_) + ": field " + in_quotes(shortened(field, 64)) + ": " + what);
}

}  // namespace cli
