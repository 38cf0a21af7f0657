// What decides a turn's tokens besides the context: journaled with the turn, so that a resumed turn goes on alike.
#pragma once

#include <cstdint>
#include <mneme/options.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mneme::agent {

struct TurnParams {
  std::uint64_t max_tokens = 0;
  float temperature = 0;
  std::int32_t top_k = 0;
  float top_p = 1, min_p = 0, repetition_penalty = 1, presence_penalty = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::vector<std::string> stop;
  std::uint64_t seed = 0;  // stored beside the JSON
};

// Checks every option of a turn; throws Error(invalid_argument) naming the option, its value and what is allowed.
TurnParams checked_params(const GenerateOptions& options, std::uint64_t seed, std::int64_t n_vocab);

std::string to_json(const TurnParams& params);
// Throws Error(store_corrupt) if the text is not what to_json writes.
TurnParams params_from_json(std::string_view text, std::uint64_t seed);

}  // namespace mneme::agent
