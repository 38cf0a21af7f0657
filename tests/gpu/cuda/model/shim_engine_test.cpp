// The engine on the stand-in: how often a decoded token waits for the device, and what becomes of a turn when the
// device hangs or a step's logits are not numbers.
#include <doctest/doctest.h>

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "gpu/cuda/cuda_device.hpp"
#include "memory/memory_store.hpp"
#include "mneme/error.hpp"
#include "runtime/model/engine.hpp"
#include "tests/support/cuda_shim/shim.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

namespace fs = std::filesystem;
using namespace mneme;
using model::TokenId;

std::shared_ptr<const model::ModelFile> written(test::GgufWriter writer) {
  const fs::path directory = fs::temp_directory_path() / ("mneme-shim-engine-" + std::to_string(::getpid()));
  fs::create_directories(directory);
  writer.write(directory / "model.gguf");
  auto file = model::ModelFile::load(directory / "model.gguf");
  fs::remove_all(directory);
  return file;
}

struct Life {
  std::unique_ptr<gpu::Device> device;
  model::Transformer transformer;
  memory::MemoryStore store;
  model::Session session;
  model::Sampler sampler;

  Life(const std::shared_ptr<const model::ModelFile>& file, std::chrono::milliseconds limit,
       const model::SamplingParams& params = {})
      : device(gpu::make_cuda_device({.wait_limit = limit})),
        transformer(*device, file, 64),
        session(transformer, store, memory::resolve(file->memory_shape(), {}), {0, std::size_t{1} << 24}),
        sampler(params, test::kTinyVocabulary) {}

  model::Sampled next(TokenId token) { return session.decode_and_sample(token, sampler, {}); }
};

Error failure_of(Life& life, TokenId token) {
  try {
    life.next(token);
  } catch (const Error& error) {
    return error;
  }
  return Error(errc::invalid_handle, "nothing was thrown");
}

}  // namespace

TEST_CASE("a decoded token waits for the device once, and no logits are downloaded") {
  Life life(written(test::tiny_model({})), std::chrono::seconds(5));
  TokenId token = life.next(7).id;  // scratch has grown then
  for (int i = 0; i < 20; ++i) {
    const auto waits = cuda_shim::counts().waits;
    token = life.next(token).id;
    CHECK(cuda_shim::counts().waits == waits + 1);
  }
}

TEST_CASE("a device that hangs in a turn ends it with engine_faulted, and the session closes") {
  const auto file = written(test::tiny_model({}));
  auto life = std::make_unique<Life>(file, std::chrono::seconds(1));
  TokenId token = life->next(7).id;
  const auto position = life->session.position();
  cuda_shim::hang(true);
  const Error error = failure_of(*life, token);
  CHECK(error.code() == errc::engine_faulted);
  CHECK(std::string(error.what()).find("did not answer") != std::string::npos);
  CHECK(life->session.position() == position);  // the step has not happened
  CHECK(failure_of(*life, token).code() == errc::engine_faulted);
  life.reset();
  cuda_shim::hang(false);  // what was under way comes late
  Life another(file, std::chrono::seconds(5));
  CHECK(another.next(7).id == token);
}

TEST_CASE("logits that are not numbers end the turn as the host's sampler does") {
  test::GgufWriter writer = test::tiny_model({});
  for (auto& tensor : writer.tensors) {
    if (tensor.name != "output_norm.weight") continue;
    const float nan = std::nanf("");
    for (std::size_t at = 0; at < tensor.data.size(); at += sizeof nan) std::memcpy(&tensor.data[at], &nan, sizeof nan);
  }
  Life life(written(writer), std::chrono::seconds(5));
  const Error error = failure_of(life, 7);
  CHECK(error.code() == errc::engine_faulted);
  std::string wanted;
  try {
    life.sampler.sample(life.session.decode(8), {}, 2);
  } catch (const Error& of_host) {
    wanted = of_host.what();
  }
  CHECK(wanted == error.what());
  CHECK(!wanted.empty());
}

TEST_CASE("logit_bias that bans every token ends the turn as the host's sampler does") {
  model::SamplingParams params;
  for (TokenId id = 0; id < test::kTinyVocabulary; ++id) params.logit_bias.emplace_back(id, -INFINITY);
  Life life(written(test::tiny_model({})), std::chrono::seconds(5), params);
  const Error error = failure_of(life, 7);
  CHECK(error.code() == errc::engine_faulted);
  CHECK(std::string(error.what()).find("logit_bias leaves no token") != std::string::npos);
}
