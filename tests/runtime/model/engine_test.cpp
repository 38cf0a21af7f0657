// What the identities of a session's bits cover.
#include "runtime/model/engine.hpp"

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "gpu/host/host_device.hpp"
#include "runtime/model/model_file.hpp"
#include "runtime/model/tokenizer/unicode_tables.hpp"
#include "tests/support/model_rig.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

namespace fs = std::filesystem;
using mneme::gpu::ActivationType;
using mneme::model::ModelFile;
using mneme::model::numerics_fingerprint;

// Physical memory of this process's mappings of a file.
std::uint64_t mapped_kib(const fs::path& path) {
  std::ifstream maps("/proc/self/smaps");
  std::uint64_t sum = 0;
  bool of_file = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < line.find(' ')) of_file = line.find(path.filename().string()) != std::string::npos;
    if (of_file && line.starts_with("Rss:")) sum += std::stoull(line.substr(4));
  }
  return sum;
}

}  // namespace

TEST_CASE("the numerics fingerprint covers device, memory, rotation, Unicode tables and weights") {
  const fs::path directory = fs::temp_directory_path() / ("mneme-engine-" + std::to_string(::getpid()));
  const auto loaded = [&directory](const mneme::test::TinyModelSpec& spec) {
    fs::create_directories(directory);
    auto file = ModelFile::load(mneme::test::write_tiny_model(directory, spec));
    fs::remove_all(directory);
    return file;
  };
  const auto device = mneme::gpu::make_host_device({1, ActivationType::int8, ""});
  const auto exact = mneme::gpu::make_host_device({1, ActivationType::f32, ""});
  const auto params = mneme::test::full_attention_params(64, 32, mneme::gpu::KvType::f16);
  auto other_params = params;
  other_params.exec_chunk = 16;

  const auto file = loaded({});
  const std::string fingerprint = numerics_fingerprint(*file, params, *device);
  CHECK(fingerprint == numerics_fingerprint(*loaded({}), params, *device));
  CHECK(fingerprint.find("\"unicode\":\"" + std::string(mneme::model::kUnicodeVersion) + "\"") != std::string::npos);

  mneme::test::TinyModelSpec turned;  // the same weights
  turned.rope_base = 20'000.0F;
  const auto turned_file = loaded(turned);
  REQUIRE(turned_file->weights_sha256() == file->weights_sha256());
  CHECK(fingerprint != numerics_fingerprint(*turned_file, params, *device));

  mneme::test::TinyModelSpec reseeded;
  reseeded.seed = 2;
  CHECK(fingerprint != numerics_fingerprint(*loaded(reseeded), params, *device));
  CHECK(fingerprint != numerics_fingerprint(*file, other_params, *device));
  CHECK(fingerprint != numerics_fingerprint(*file, params, *exact));
}

TEST_CASE("a loaded model's weights stand in memory once") {
  const fs::path directory = fs::temp_directory_path() / ("mneme-mapped-" + std::to_string(::getpid()));
  fs::create_directories(directory);
  mneme::test::TinyModelSpec spec;
  spec.n_ff = 4096;
  const fs::path path = mneme::test::write_tiny_model(directory, spec);
  const auto file = ModelFile::load(path);
  CHECK(mapped_kib(path) > 4096);  // reading it for its hash brought it in
  const auto device = mneme::gpu::make_host_device({1, ActivationType::int8, ""});
  const mneme::model::Transformer transformer(*device, file, 8);
  CHECK(mapped_kib(path) < 64);
  CHECK(file->tokenizer().n_vocab() == mneme::test::kTinyVocabulary);  // it is still there
  fs::remove_all(directory);
}
