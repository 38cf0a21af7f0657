// Lives of an agent on tiny models: what the model tests of the CUDA backend share.
#pragma once

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "gpu/device.hpp"
#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"
#include "tests/support/tiny_model.hpp"

namespace mneme::test {

using model::TokenId;

inline std::shared_ptr<const model::ModelFile> tiny(const TinyModelSpec& spec) {
  const std::filesystem::path directory =
      std::filesystem::temp_directory_path() / ("mneme-cuda-model-" + std::to_string(::getpid()));
  std::filesystem::create_directories(directory);
  auto file = model::ModelFile::load(write_tiny_model(directory, spec));
  std::filesystem::remove_all(directory);
  return file;
}

// A memory so small that a hundred tokens fill initial tokens, units and window.
inline memory::Params small_memory(memory::SelectorKind selector) {
  memory::Params params;
  params.selector = selector;
  params.n_init = 4;
  params.n_local = 16;
  params.block = 8;
  params.page = 4;
  params.shortlist = 2;
  params.voters = 4;
  params.repr_topk = 2;
  params.topk = 2;
  params.exec_chunk = 8;
  params.global_distance = 15;
  params.cached_blocks = 4;
  return params;
}

inline std::vector<TokenId> prompt(std::size_t n) {
  std::vector<TokenId> tokens(n);
  for (std::size_t i = 0; i < n; ++i) tokens[i] = static_cast<TokenId>(3 + (i * 37 + i * i / 5) % 250);
  return tokens;
}

// One life of an agent: its device, weights and memory.
struct Life {
  std::unique_ptr<gpu::Device> device;
  model::Transformer transformer;
  memory::MemoryStore store;
  model::Session session;

  Life(std::unique_ptr<gpu::Device> on, const std::shared_ptr<const model::ModelFile>& file,
       const memory::Params& params, const memory::MemoryStore& past = {})
      : device(std::move(on)),
        transformer(*device, file, 64),
        store(past),
        session(transformer, store, params, {0, std::size_t{1} << 24}) {}

  std::vector<std::vector<float>> read(std::span<const TokenId> tokens) {
    std::vector<std::vector<float>> rows;
    while (!tokens.empty()) {
      std::span<const float> logits;
      const auto fed = static_cast<std::size_t>(session.prefill_some_with_logits(tokens, logits));
      const std::size_t n_vocab = logits.size() / fed;
      for (std::size_t i = 0; i < fed; ++i)
        rows.emplace_back(logits.begin() + static_cast<std::ptrdiff_t>(i * n_vocab),
                          logits.begin() + static_cast<std::ptrdiff_t>((i + 1) * n_vocab));
      tokens = tokens.subspan(fed);
    }
    return rows;
  }
  std::vector<float> decode(TokenId token) {
    const auto logits = session.decode(token);
    return {logits.begin(), logits.end()};
  }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace mneme::test
