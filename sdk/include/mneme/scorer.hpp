// Teacher-forced scoring: how well a model, with full attention or with the memory, predicts a given text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mneme/model.hpp>
#include <mneme/options.hpp>
#include <span>
#include <string>
#include <vector>

namespace mneme {
inline namespace v1 {

namespace detail {
struct ScorerState;
}

struct ScorerOptions {
  bool full_attention = false;  // true: every token attends all before it; `memory` is ignored
  MemoryOptions memory;
  std::string device = "auto";  // as RuntimeOptions::device
  int threads = 0;              // of the CPU backend; 0: one per core
};

// A run of tokens fed in one piece: at once, or one by one.
struct ScoreSegment {
  enum class Kind { prefill, decode };
  std::size_t n_tokens = 0;
  Kind kind = Kind::prefill;
};

// One value per token but the first.
struct Score {
  std::vector<float> nll;          // -ln p(token | all before it)
  std::vector<std::int32_t> top1;  // the model's most probable token at that place
};

// Not thread-safe: one caller at a time. Works on the calling thread.
class MNEME_API Scorer {
 public:
  // Throws invalid_argument naming the memory key, out_of_memory.
  explicit Scorer(const Model& model, const ScorerOptions& options = {});

  // Starts from an empty context. `segments` must cover `ids`; empty: one prefill. Throws invalid_argument.
  Score score(std::span<const std::int32_t> ids, std::span<const ScoreSegment> segments = {});

 private:
  std::shared_ptr<detail::ScorerState> state_;  // shared between copies of the handle
};

}  // namespace v1
}  // namespace mneme
