// A model on the program's device with one memory context over a store in RAM: what whole-model tests drive.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/context.hpp"
#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"
#include "runtime/model/model_file.hpp"
#include "runtime/model/transformer.hpp"
#include "tests/support/test_device.hpp"

namespace mneme::test {

// Parameters under which every key is in the window: exact full attention up to n_local tokens.
inline memory::Params full_attention_params(std::int64_t n_local, std::int64_t exec_chunk, gpu::KvType store_type) {
  memory::Params params;
  params.n_init = 0;
  params.n_local = n_local;
  params.block = 64;
  params.topk = 0;
  params.exec_chunk = exec_chunk;
  params.global_distance = n_local - 1;
  params.selector = memory::SelectorKind::two_stage;
  params.page = 32;
  params.shortlist = 4;
  params.voters = 32;
  params.repr_topk = 4;
  params.store_type = params.unit_type = store_type;
  return params;
}

class ModelRig {
 public:
  ModelRig(const std::filesystem::path& path, const gpu::HostOptions& device_options, std::int64_t max_pass = 512)
      : device(test_device(device_options)), file(model::ModelFile::load(path)), transformer(*device, file, max_pass) {}

  std::unique_ptr<memory::Context> context(const memory::Params& params, memory::UnitStore& store,
                                           memory::Budget budget = {0, 64U << 20U}) {
    return std::make_unique<memory::Context>(*device, store, file->memory_shape(), params, budget,
                                             transformer.max_pass_tokens(), model::params_hash(*file, params));
  }

  // Feeds tokens as appends of the given lengths, each cut into chunks of E from its first token; calls sink(position,
  // logits row) for every token.
  template <class Sink>
  void feed(memory::Context& context, std::span<const model::TokenId> tokens, std::span<const std::int64_t> appends,
            Sink&& sink) {
    const std::int64_t chunk = context.params().exec_chunk;
    std::size_t next = 0;
    for (const std::int64_t append : appends) {
      for (std::int64_t done = 0; done < append;) {
        std::vector<std::int64_t> chunks;
        std::int64_t pass = 0;
        while (done + pass < append) {
          const std::int64_t length = std::min(chunk, append - done - pass);
          if (pass + length > transformer.max_pass_tokens()) break;
          chunks.push_back(length);
          pass += length;
        }
        const auto slice = tokens.subspan(next, static_cast<std::size_t>(pass));
        const auto logits =
            transformer.forward(context, slice, chunks, gpu::Phase::prefill, model::Transformer::Logits::all);
        const auto n_vocab = static_cast<std::size_t>(file->config().n_vocab);
        for (std::size_t i = 0; i < slice.size(); ++i) sink(next + i, logits.subspan(i * n_vocab, n_vocab));
        next += slice.size();
        done += pass;
      }
    }
  }

  std::unique_ptr<gpu::Device> device;
  std::shared_ptr<const model::ModelFile> file;
  model::Transformer transformer;
};

// log(sum(exp(logits))) and the index of the largest logit, in double precision.
struct RowSummary {
  double log_sum_exp = 0;
  int top1 = 0;
};
RowSummary summarise(std::span<const float> logits);

}  // namespace mneme::test
