// Options: values with fluent setters. An out-of-range value is refused where the options are used, with
// invalid_argument naming the option; the setters only store.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mneme/base/log.hpp>
#include <mneme/error.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A setter that can be chained, for values and for temporaries, and a getter of the same name.
#define MNEME_OPTION(type, name, initial) \
 private:                                 \
  type name##_ = initial;                 \
                                          \
 public:                                  \
  auto& name(type value)& {               \
    name##_ = std::move(value);           \
    return *this;                         \
  }                                       \
  auto&& name(type value)&& {             \
    name##_ = std::move(value);           \
    return std::move(*this);              \
  }                                       \
  const type& name() const noexcept {     \
    return name##_;                       \
  }

namespace mneme {
inline namespace v1 {

class ModelOptions {
  MNEME_OPTION(bool, copy_into_memory, false)   // false: map the file, which must then not be modified while in use
  MNEME_OPTION(bool, verify_weights, false)     // read all weights once and refuse scales that are not finite
  MNEME_OPTION(std::string, pre_tokenizer, {})  // for files that do not name theirs
  MNEME_OPTION(std::string, chat_template, {})  // a built-in template by name, for files whose own is not recognised
};

class StoreOptions {
  MNEME_OPTION(std::uint64_t, min_free_bytes, std::uint64_t{64} << 20U)  // below it accepting answers store_full
  MNEME_OPTION(bool, migrate, true)  // false: a store of an older schema is refused (store_unsupported)
};

class RuntimeOptions {
  // "cpu"; "cuda:N", the N-th CUDA device (the build must have the backend); "auto": the CPU, until the CUDA backend
  // has been run on cards.
  MNEME_OPTION(std::string, device, "auto")
  MNEME_OPTION(int, threads, 0)  // of the CPU backend; 0: one per core
  // Hard bounds per agent: unit slots on the device (0: as the memory parameters ask; a CUDA device takes what is given
  // here when the agent is opened), host cache of units and index.
  MNEME_OPTION(std::size_t, device_bytes, 0)
  MNEME_OPTION(std::size_t, host_bytes, std::size_t{256} << 20U)
  MNEME_OPTION(std::chrono::milliseconds, drain_timeout, std::chrono::milliseconds(10000))
  MNEME_OPTION(LogSink, log, {})
};

// The memory's parameters; what is not set follows the model's preset. All but cached_blocks identify an agent's
// memory: an agent must be reopened with the values it was made with (memory_mismatch).
class MNEME_API MemoryOptions {
  using Count = std::optional<std::int64_t>;

 public:
  static constexpr std::int64_t kAllUnits = INT64_MAX;  // for topk

  // A JSON object with any of the keys below; topk may be "all". Throws Error(invalid_argument) naming the key.
  static MemoryOptions from_json(std::string_view text);
  static MemoryOptions from_json(std::string_view text, error_code& ec);

  MNEME_OPTION(Count, n_init, {})
  MNEME_OPTION(Count, n_local, {})
  MNEME_OPTION(Count, block, {})
  MNEME_OPTION(Count, topk, {})
  MNEME_OPTION(Count, repr_topk, {})
  MNEME_OPTION(Count, exec_chunk, {})
  MNEME_OPTION(Count, cached_blocks, {})
  MNEME_OPTION(std::string, selector, {})  // "two_stage" or "representatives"; empty: the preset's
  MNEME_OPTION(Count, page, {})
  MNEME_OPTION(Count, shortlist, {})
  MNEME_OPTION(Count, voters, {})
  MNEME_OPTION(Count, global_distance, {})
};

// What kill -9 may cost (specs: at most nothing that was delivered; one unit of the open turn; the open turn).
enum class Durability : int { token = 1, unit = 2, turn = 3 };

class AgentOptions {
  MNEME_OPTION(Durability, durability, Durability::unit)
  MNEME_OPTION(bool, power_loss_safe, false)  // fsync at acceptance: receipts survive power loss too
  MNEME_OPTION(MemoryOptions, memory, {})
  MNEME_OPTION(int, weight, 1)  // share of the engine, 1..64
};

class GenerateOptions {
  using Bias = std::vector<std::pair<std::int32_t, float>>;
  using Stops = std::vector<std::string>;
  using OnToken = std::function<void(const Token&)>;
  using Seed = std::optional<std::uint64_t>;
  using Milliseconds = std::optional<std::chrono::milliseconds>;

  MNEME_OPTION(std::uint64_t, max_tokens, 1024)  // >= 1
  MNEME_OPTION(float, temperature, 0.0F)         // 0: greedy
  MNEME_OPTION(std::int32_t, top_k, 0)           // 0: off
  MNEME_OPTION(float, top_p, 1.0F)
  MNEME_OPTION(float, min_p, 0.0F)
  MNEME_OPTION(float, repetition_penalty, 1.0F)
  MNEME_OPTION(float, presence_penalty, 0.0F)
  MNEME_OPTION(Bias, logit_bias, {})  // (token id, added to its logit)
  MNEME_OPTION(Seed, seed, {})        // none: drawn, and journaled with the turn
  // The answer ends before the first of these strings; at most 16, each of 1..256 bytes.
  MNEME_OPTION(Stops, stop, {})
  MNEME_OPTION(Milliseconds, deadline, {})  // from the call on; the turn then ends with Finish::deadline
  // Called for each token, on the runtime's executor, never two at once for one agent, never after the turn's result.
  // Tokens then come here and not to async_next. If it throws, the turn ends with callback_threw.
  MNEME_OPTION(OnToken, on_token, {})
  MNEME_OPTION(std::uint32_t, group_tokens, 1)  // durability `token`: tokens per commit (1..16; or what 20 ms gave)
  MNEME_OPTION(bool, trace, false)              // record which units each step attended: Agent::recall
};

}  // namespace v1
}  // namespace mneme

#undef MNEME_OPTION
