// See turn_params.hpp.
#include "runtime/agent/turn_params.hpp"

#include <cmath>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <nlohmann/json.hpp>

namespace mneme::agent {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;

void require(bool ok, const char* option, const std::string& value, const char* allowed) {
  if (ok) return;
  throw Error(errc::invalid_argument, std::string("option ") + option + " is " + value + "; allowed: " + allowed);
}

void require_float(float value, float min, float max, const char* option, const char* allowed) {
  require(std::isfinite(value) && value >= min && value <= max, option, std::to_string(value), allowed);
}

void check_stops(const std::vector<std::string>& stops) {
  require(stops.size() <= 16, "stop", std::to_string(stops.size()) + " strings", "at most 16 strings");
  for (const std::string& stop : stops) {
    const bool ok = !stop.empty() && stop.size() <= 256 && find_invalid_utf8(stop) == std::string::npos;
    require(ok, "stop", excerpt(stop), "strings of 1 to 256 bytes of UTF-8");
  }
}

}  // namespace

TurnParams checked_params(const GenerateOptions& options, std::uint64_t seed, std::int64_t n_vocab) {
  require(options.max_tokens() >= 1, "max_tokens", std::to_string(options.max_tokens()), ">= 1");
  require_float(options.temperature(), 0, 100, "temperature", "0 to 100");
  require(options.top_k() >= 0, "top_k", std::to_string(options.top_k()), ">= 0");
  require_float(options.top_p(), 0, 1, "top_p", "0 to 1");
  require_float(options.min_p(), 0, 1, "min_p", "0 to 1");
  require_float(options.repetition_penalty(), 0.01F, 100, "repetition_penalty", "0.01 to 100");
  require_float(options.presence_penalty(), -100, 100, "presence_penalty", "-100 to 100");
  require(options.group_tokens() >= 1 && options.group_tokens() <= 16, "group_tokens",
          std::to_string(options.group_tokens()), "1 to 16");
  require(options.logit_bias().size() <= 1024, "logit_bias", std::to_string(options.logit_bias().size()) + " entries",
          "at most 1024");
  for (const auto& [id, bias] : options.logit_bias()) {
    require(id >= 0 && id < n_vocab, "logit_bias", "for token " + std::to_string(id), "ids of the vocabulary");
    require_float(bias, -1e6F, 1e6F, "logit_bias", "-1e6 to 1e6");
  }
  if (options.deadline().has_value()) {
    require(options.deadline()->count() >= 0, "deadline", std::to_string(options.deadline()->count()) + " ms", ">= 0");
  }
  check_stops(options.stop());
  TurnParams params;
  params.max_tokens = options.max_tokens();
  params.temperature = options.temperature();
  params.top_k = options.top_k();
  params.top_p = options.top_p();
  params.min_p = options.min_p();
  params.repetition_penalty = options.repetition_penalty();
  params.presence_penalty = options.presence_penalty();
  params.logit_bias = options.logit_bias();
  params.stop = options.stop();
  params.seed = seed;
  return params;
}

// Numbers are written so that reading gives the same bits: a float is exact as a double, and doubles round-trip.
std::string to_json(const TurnParams& params) {
  json out = {{"v", kVersion},
              {"max_tokens", params.max_tokens},
              {"temperature", static_cast<double>(params.temperature)},
              {"top_k", params.top_k},
              {"top_p", static_cast<double>(params.top_p)},
              {"min_p", static_cast<double>(params.min_p)},
              {"repetition_penalty", static_cast<double>(params.repetition_penalty)},
              {"presence_penalty", static_cast<double>(params.presence_penalty)},
              {"logit_bias", json::array()},
              {"stop", params.stop}};
  for (const auto& [id, bias] : params.logit_bias) out["logit_bias"].push_back({id, static_cast<double>(bias)});
  return out.dump();
}

TurnParams params_from_json(std::string_view text, std::uint64_t seed) {
  try {
    const json in = json::parse(text);
    if (in.at("v").get<int>() != kVersion) throw Error(errc::store_corrupt, "turn parameters of an unknown version");
    TurnParams params;
    params.max_tokens = in.at("max_tokens").get<std::uint64_t>();
    params.temperature = in.at("temperature").get<float>();
    params.top_k = in.at("top_k").get<std::int32_t>();
    params.top_p = in.at("top_p").get<float>();
    params.min_p = in.at("min_p").get<float>();
    params.repetition_penalty = in.at("repetition_penalty").get<float>();
    params.presence_penalty = in.at("presence_penalty").get<float>();
    for (const json& entry : in.at("logit_bias")) {
      params.logit_bias.emplace_back(entry.at(0).get<std::int32_t>(), entry.at(1).get<float>());
    }
    params.stop = in.at("stop").get<std::vector<std::string>>();
    params.seed = seed;
    return params;
  } catch (const json::exception& e) {
    throw Error(errc::store_corrupt, "turn parameters " + excerpt(text) + " are damaged: " + e.what());
  }
}

}  // namespace mneme::agent
