// One forward pass of a decoder-only transformer whose attention lives in a memory::Context.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu/device.hpp"
#include "gpu/memory_plan.hpp"
#include "memory/context.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme::model {

// Weights on a device plus the activations of one pass. Used by one thread (the engine thread); serves any number of
// contexts in turn.
class Transformer {
 public:
  // max_pass_tokens: the longest pass. `device` must outlive the transformer. Throws out_of_memory; if plan() does not
  // fit, before anything is allocated.
  Transformer(gpu::Device& device, std::shared_ptr<const ModelFile> model, std::int64_t max_pass_tokens);
  ~Transformer();

  // The device memory of a transformer that is made of these arguments: weights, activations.
  static std::vector<gpu::MemoryPart> plan(const gpu::Device& device, const ModelFile& model,
                                           std::int64_t max_pass_tokens);

  const ModelFile& model() const noexcept { return *model_; }
  gpu::Device& device() const noexcept { return device_; }
  std::int64_t max_pass_tokens() const noexcept { return max_pass_tokens_; }
  std::size_t weight_bytes() const noexcept;      // on the device
  std::size_t activation_bytes() const noexcept;  // on the device

  // Which rows of logits a pass computes.
  enum class Logits { none, last, all };

  // Appends `tokens` to the context as one pass of `phase`, cut into `chunks` (lengths; their sum is tokens.size()).
  // Returns the logits in host memory, [0, 1 or tokens.size()][n_vocab], valid until the next call. If anything throws,
  // the context is as before the call.
  std::span<const float> forward(memory::Context& context, std::span<const TokenId> tokens,
                                 std::span<const std::int64_t> chunks, gpu::Phase phase, Logits wanted);

  // The token that the device chooses, or, if the host has to, the logits: [n_vocab], valid until the next call.
  struct Next {
    std::optional<gpu::SampledToken> token;
    std::span<const float> logits;
  };
  // Appends a token to the context as a decode pass of its own. If anything throws, the context is as before the call.
  Next forward_and_sample(memory::Context& context, TokenId token, const gpu::SampleArgs& args);

 private:
  struct Layer;
  template <class Behind, class Read>
  auto run_pass(memory::Context& context, std::span<const TokenId> tokens, std::span<const std::int64_t> chunks,
                gpu::Phase phase, std::int64_t n_rows, const Behind& behind, const Read& read);
  void run_layers(memory::Context& context, std::int64_t n_tokens);
  bool can_decode_by_plan(memory::Context& context);
  std::unique_ptr<gpu::DecodePlan> make_plan(const gpu::DecodeMemory& memory);
  void compute_logits(std::int64_t n_tokens, std::int64_t n_rows);
  std::span<const float> download_logits(std::int64_t n_rows);

  gpu::Device& device_;
  std::shared_ptr<const ModelFile> model_;
  std::int64_t max_pass_tokens_;
  std::unique_ptr<gpu::Matrix> table_, output_;
  std::vector<Layer> layers_;
  gpu::Buffer output_norm_;
  gpu::Buffer x_, q_, k_, v_, attended_, hidden_;
  gpu::Buffer logits_;       // [n_vocab]; keeps its address, because decode plans write to it
  gpu::Buffer many_logits_;  // [n][n_vocab] of a pass that wants several rows
  std::vector<float> host_logits_;
};

}  // namespace mneme::model
