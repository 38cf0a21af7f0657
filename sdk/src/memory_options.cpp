// The memory's parameters as the program gives and sees them: options, JSON text. See <mneme/options.hpp>.
#include <map>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <mneme/options.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

using nlohmann::json;
using Setter = void (*)(MemoryOptions&, std::int64_t);

const std::map<std::string, Setter>& count_setters() {
  static const std::map<std::string, Setter> setters = {
      {"n_init", [](MemoryOptions& to, std::int64_t value) { to.n_init(value); }},
      {"n_local", [](MemoryOptions& to, std::int64_t value) { to.n_local(value); }},
      {"block", [](MemoryOptions& to, std::int64_t value) { to.block(value); }},
      {"topk", [](MemoryOptions& to, std::int64_t value) { to.topk(value); }},
      {"repr_topk", [](MemoryOptions& to, std::int64_t value) { to.repr_topk(value); }},
      {"exec_chunk", [](MemoryOptions& to, std::int64_t value) { to.exec_chunk(value); }},
      {"cached_blocks", [](MemoryOptions& to, std::int64_t value) { to.cached_blocks(value); }},
      {"page", [](MemoryOptions& to, std::int64_t value) { to.page(value); }},
      {"shortlist", [](MemoryOptions& to, std::int64_t value) { to.shortlist(value); }},
      {"voters", [](MemoryOptions& to, std::int64_t value) { to.voters(value); }},
      {"global_distance", [](MemoryOptions& to, std::int64_t value) { to.global_distance(value); }}};
  return setters;
}

[[noreturn]] void refuse(const std::string& key, const std::string& problem) {
  throw Error(errc::invalid_argument, "memory parameter " + excerpt(key) + " " + problem);
}

// Keys twice in one object would silently lose one; the parser is asked to tell.
json parse_unique(std::string_view text) {
  std::set<std::string> seen;
  const auto on_event = [&seen](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1 && !seen.insert(parsed.get<std::string>()).second) {
      refuse(parsed.get<std::string>(), "is given twice");
    }
    return true;
  };
  try {
    return json::parse(text, on_event);
  } catch (const json::exception& e) {
    throw Error(errc::invalid_argument, std::string("memory parameters are not JSON: ") + e.what());
  }
}

void set_one(MemoryOptions& options, const std::string& key, const json& value) {
  if (key == "selector") {
    if (!value.is_string()) refuse(key, "must be a string");
    options.selector(value.get<std::string>());
    return;
  }
  const auto setter = count_setters().find(key);
  if (setter == count_setters().end()) refuse(key, "is not known");
  if (key == "topk" && value.is_string() && value.get<std::string>() == "all") {
    options.topk(MemoryOptions::kAllUnits);
    return;
  }
  const bool fits =
      value.is_number_integer() && (!value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX);
  if (!fits) refuse(key, "must be an integer");
  setter->second(options, value.get<std::int64_t>());
}

}  // namespace

MemoryOptions MemoryOptions::from_json(std::string_view text) {
  const json object = parse_unique(text);
  if (!object.is_object()) throw Error(errc::invalid_argument, "memory parameters must be a JSON object");
  MemoryOptions options;
  for (const auto& [key, value] : object.items()) set_one(options, key, value);
  return options;
}

MemoryOptions MemoryOptions::from_json(std::string_view text, error_code& ec) {
  ec = {};
  try {
    return from_json(text);
  } catch (const Error& e) {
    ec = e.code();
    return {};
  }
}

namespace detail {

memory::Params resolve_memory(const model::ModelFile& model, const MemoryOptions& options) {
  memory::ParamOverrides overrides;
  overrides.n_init = options.n_init();
  overrides.n_local = options.n_local();
  overrides.block = options.block();
  overrides.topk = options.topk();
  overrides.repr_topk = options.repr_topk();
  overrides.exec_chunk = options.exec_chunk();
  overrides.cached_blocks = options.cached_blocks();
  overrides.page = options.page();
  overrides.shortlist = options.shortlist();
  overrides.voters = options.voters();
  overrides.global_distance = options.global_distance();
  if (options.selector() == "two_stage") {
    overrides.selector = memory::SelectorKind::two_stage;
  } else if (options.selector() == "representatives") {
    overrides.selector = memory::SelectorKind::representatives;
  } else if (!options.selector().empty()) {
    refuse("selector", "is " + excerpt(options.selector()) + R"(; allowed: "two_stage", "representatives")");
  }
  return memory::resolve(model.memory_shape(), overrides);
}

std::string memory_json(const memory::Params& params) {
  json out = {{"n_init", params.n_init},
              {"n_local", params.n_local},
              {"block", params.block},
              {"repr_topk", params.repr_topk},
              {"exec_chunk", params.exec_chunk},
              {"cached_blocks", params.cached_blocks},
              {"selector", params.selector == memory::SelectorKind::two_stage ? "two_stage" : "representatives"},
              {"page", params.page},
              {"shortlist", params.shortlist},
              {"voters", params.voters},
              {"global_distance", params.global_distance}};
  out["topk"] = params.topk == memory::kAllUnits ? json("all") : json(params.topk);
  return out.dump();
}

}  // namespace detail
}  // namespace v1
}  // namespace mneme
