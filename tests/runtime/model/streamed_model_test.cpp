// Models that are written piece by piece load and run like others.
#include <doctest/doctest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gpu/host/host_device.hpp"
#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"
#include "tests/support/streamed_model.hpp"

namespace {

namespace fs = std::filesystem;
using namespace mneme;

struct Directory {
  fs::path path = fs::temp_directory_path() / ("mneme-streamed-" + std::to_string(::getpid()));
  Directory() { fs::create_directories(path); }
  ~Directory() { fs::remove_all(path); }
};

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

double deviation(std::span<const float> values) {
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += static_cast<double>(value) * value;
  }
  const auto n = static_cast<double>(values.size());
  return std::sqrt(squares / n - sum / n * (sum / n));
}

}  // namespace

TEST_CASE("a streamed model of every weight type loads, reads text and decodes to sane logits") {
  const Directory directory;
  const auto device = gpu::make_host_device({.n_threads = 1, .activations = gpu::ActivationType::f32, .isa = ""});
  for (const gpu::DTypeTraits& type : gpu::kDTypeTraits) {
    CAPTURE(type.name);
    const fs::path path = directory.path / "model.gguf";
    const test::TinyModelSpec spec = test::model_shape("tiny", type.type);
    const std::uint64_t bytes = test::write_streamed_model(path, spec, 2);
    CHECK(bytes == fs::file_size(path));
    model::ModelFileOptions options;
    options.verify_weights = true;
    const auto file = model::ModelFile::load(path, options);
    CHECK(file->config().n_vocab == spec.n_vocab);
    memory::MemoryStore store;
    model::Transformer transformer(*device, file, 64);
    model::Session session(transformer, store, memory::resolve(file->memory_shape(), {}), {0, std::size_t{64} << 20U});
    const std::vector<model::TokenId> tokens = file->tokenizer().encode_text("the cat sat on the mat");
    REQUIRE(tokens.size() > 4);
    CHECK(session.prefill_some(tokens) == static_cast<std::int64_t>(tokens.size()));
    const std::span<const float> logits = session.decode(tokens.back());
    CHECK(deviation(logits) > 1.0);
    CHECK(deviation(logits) < 4.0);
  }
}

TEST_CASE("a streamed model does not depend on the threads that wrote it, only on its seed") {
  const Directory directory;
  test::TinyModelSpec spec = test::model_shape("tiny", gpu::DType::q8_0);
  spec.n_vocab = 5000;  // more than one piece
  const fs::path one = directory.path / "one.gguf", three = directory.path / "three.gguf";
  test::write_streamed_model(one, spec, 1);
  test::write_streamed_model(three, spec, 3);
  CHECK((contents(one) == contents(three)));
  spec.seed = 2;
  test::write_streamed_model(three, spec, 3);
  CHECK((contents(one) != contents(three)));
}

TEST_CASE("the shapes of known models have their parameters") {
  const auto n_parameters = [](const char* shape) {
    std::size_t n = 0;
    for (const test::TensorPlan& tensor : test::plan_tensors(test::model_shape(shape, gpu::DType::q4_k))) {
      n += tensor.n_elements();
    }
    return n;
  };
  CHECK(n_parameters("0.5B") == 494'032'768);
  CHECK(n_parameters("1B") == 1'235'814'400 + 32);  // and the factors of the rotation
  CHECK(n_parameters("8B") == 8'030'261'248 + 64);
  for (const std::string& name : test::model_shape_names()) CHECK_NOTHROW(test::model_shape(name, gpu::DType::q6_k));
  CHECK_THROWS_AS(test::model_shape("2B", gpu::DType::f16), std::invalid_argument);
}
