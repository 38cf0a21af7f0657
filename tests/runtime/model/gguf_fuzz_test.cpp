// Random damage to good files: every result is a model or a typed error.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>

#include "tests/fuzz/gguf_target.hpp"
#include "tests/support/reference.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

using mneme::test::as_bytes;
using mneme::test::TinyModelSpec;

// Small, so that damage hits the structure and not only weights.
TinyModelSpec smallest(const char* architecture, mneme::test::TinyVocabulary vocabulary) {
  TinyModelSpec spec;
  spec.architecture = architecture;
  spec.vocabulary = vocabulary;
  spec.n_layers = 1;
  spec.n_embd = 32;
  spec.n_heads = 2;
  spec.n_kv_heads = 1;
  spec.n_ff = 32;
  spec.type = mneme::gpu::DType::q4_0;
  spec.has_rope_freqs = true;
  return spec;
}

class Mutator {
 public:
  Mutator(std::uint64_t seed, std::size_t structure_bytes) : engine_(seed), structure_bytes_(structure_bytes) {}

  std::string operator()(std::string bytes) {
    const std::uint64_t n = 1 + below(3);
    for (std::uint64_t i = 0; i < n && !bytes.empty(); ++i) damage(bytes);
    return bytes;
  }

 private:
  std::uint64_t below(std::uint64_t n) { return engine_() % n; }

  void damage(std::string& bytes) {
    const std::size_t at = below(std::min(bytes.size(), structure_bytes_));
    const std::size_t rest = bytes.size() - at;
    switch (below(6)) {
      case 0:
        bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ 1U << below(8));
        break;
      case 1:
        bytes[at] = static_cast<char>(below(256));
        break;
      case 2:
        overwrite(bytes, at);
        break;
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.erase(at, std::min<std::size_t>(rest, 1 + below(16)));
        break;
      default:
        bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(16)));
    }
  }

  // A number that arithmetic on sizes tends to get wrong, in 4 or 8 bytes.
  void overwrite(std::string& bytes, std::size_t at) {
    constexpr std::uint64_t kNumbers[] = {0,           1,           2,           0x7F,        0xFF,
                                          0x7FFFFFFF,  0xFFFFFFFF,  1ULL << 32U, 1ULL << 61U, (1ULL << 61U) + 1,
                                          1ULL << 62U, 1ULL << 63U, ~0ULL,       ~0ULL >> 1U, ~0ULL - 31};
    const std::string number = mneme::test::le(kNumbers[below(std::size(kNumbers))]);
    bytes.replace(at, std::min<std::size_t>(bytes.size() - at, 8), number, 0, below(2) == 0 ? 4 : 8);
  }

  std::mt19937_64 engine_;
  std::size_t structure_bytes_;
};

// The suite's share of the work; MNEME_TEST_QUICK is set for sanitizer builds.
int n_mutations() {
  return std::getenv("MNEME_TEST_QUICK") != nullptr ? 500 : 3000;
}

}  // namespace

TEST_CASE("damaged model files load or give a typed error") {
  const struct {
    const char* architecture;
    mneme::test::TinyVocabulary vocabulary;
  } cases[] = {{"llama", mneme::test::TinyVocabulary::bpe}, {"qwen3", mneme::test::TinyVocabulary::spm}};
  for (const auto& c : cases) {
    const std::string good = mneme::test::tiny_model(smallest(c.architecture, c.vocabulary)).bytes();
    REQUIRE(mneme::test::loads_as_model(as_bytes(good)));
    const std::size_t structure = mneme::model::GgufFile::from_bytes(as_bytes(good)).data_offset();
    int loaded = 0;
    for (int seed = 0; seed < n_mutations(); ++seed) {
      CAPTURE(c.architecture);
      CAPTURE(seed);
      const std::string damaged = Mutator(static_cast<std::uint64_t>(seed), structure)(good);
      bool is_model = false;
      CHECK_NOTHROW(is_model = mneme::test::loads_as_model(as_bytes(damaged)));
      loaded += is_model ? 1 : 0;
    }
    // Both outcomes occur, or the damage is too mild or too coarse to test anything.
    CHECK(loaded > n_mutations() / 100);
    CHECK(loaded < n_mutations() / 2);
  }
}

TEST_CASE("a model file cut at any byte of its structure gives a typed error") {
  const std::string good = mneme::test::tiny_model(smallest("qwen2", mneme::test::TinyVocabulary::bpe)).bytes();
  const std::size_t step = std::getenv("MNEME_TEST_QUICK") != nullptr ? 17 : 3;  // every byte: the container's own test
  for (std::size_t length = 0; length < good.size(); length += step) {
    CAPTURE(length);
    bool is_model = true;
    CHECK_NOTHROW(is_model = mneme::test::loads_as_model(as_bytes(good.substr(0, length))));
    CHECK_FALSE(is_model);
  }
}

TEST_CASE("the corpus of model files that once broke a reader is replayed") {
  const auto corpus = mneme::test::data_dir() / "gguf";
  for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
    CAPTURE(entry.path().string());
    CHECK_NOTHROW(mneme::test::loads_as_model(as_bytes(mneme::test::read_file(entry.path()))));
  }
}
