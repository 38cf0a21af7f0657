// What the loader hands out, checked by its use: a double-precision pass over it gives the logits of other engines.
#include "tests/support/reference_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "tests/support/reference.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

using mneme::model::GgufFile;
using mneme::test::ReferenceModel;

std::vector<float> read_floats(const std::filesystem::path& path) {
  const std::string bytes = mneme::test::read_file(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// The largest difference of logits; transformers in f32 is within 2.0e-5 of its own float64 run.
constexpr double kReferenceError = 4e-5;

double largest_difference(std::span<const double> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - double{b[i]}));
  return largest;
}

}  // namespace

TEST_CASE("the checked-in models give the logits of transformers") {
  for (const std::string name : {"llama3-q8_0", "qwen2-yarn4"}) {
    CAPTURE(name);
    const auto stem = mneme::test::data_dir() / "gguf" / name;
    const ReferenceModel model(GgufFile::open(stem.string() + ".gguf"));
    const auto ids = nlohmann::json::parse(mneme::test::read_file(stem.string() + ".json"))["ids"];
    const std::vector<float> expected = read_floats(stem.string() + ".logits.f32");
    CHECK(largest_difference(model.logits(ids.get<std::vector<std::int32_t>>()), expected) < kReferenceError);
  }
}

TEST_CASE("every supported reference model gives the logits of transformers") {
  const auto reference = mneme::test::reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  const auto dir = *reference / "model/logits/tiny";
  int compared = 0;
  for (const auto& entry : nlohmann::json::parse(mneme::test::read_file(dir / "tiny.json"))) {
    const std::string name = entry["name"], architecture = entry["arch"];
    if (architecture == "phi3" || architecture == "gemma3") continue;
    CAPTURE(name);
    const ReferenceModel model(GgufFile::open(dir / (name + ".gguf")));
    const std::vector<float> all = read_floats(dir / (name + ".logits.f32"));
    const std::size_t each = all.size() / entry["seqs"].size();
    for (std::size_t i = 0; i < entry["seqs"].size(); ++i) {
      const auto ids = entry["seqs"][i].get<std::vector<std::int32_t>>();
      CHECK(largest_difference(model.logits(ids), std::span(all).subspan(i * each, each)) < kReferenceError);
      ++compared;
    }
  }
  CHECK(compared == 24);
}

TEST_CASE("generated models have lively logits and do not repeat themselves") {
  const std::vector<std::int32_t> prompt = {1, 104, 40, 77, 260, 31, 9};
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(architecture);
    mneme::test::TinyModelSpec spec;
    spec.architecture = architecture;
    const ReferenceModel model(
        GgufFile::from_bytes(mneme::test::as_bytes(mneme::test::tiny_model(spec).bytes()), architecture));
    double square = 0.0;
    const std::vector<double> logits = model.logits(prompt);
    for (const double logit : logits) square += logit * logit;
    const double deviation = std::sqrt(square / static_cast<double>(logits.size()));
    CHECK(deviation > 1.0);
    CHECK(deviation < 4.0);
    const std::vector<std::int32_t> text = model.greedy(prompt, 32);
    CHECK(std::set<std::int32_t>(text.begin(), text.end()).size() > 12);
    CHECK(*std::min_element(text.begin(), text.end()) > 2);  // no control token
  }
}
