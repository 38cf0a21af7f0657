// Model configuration: what each family says, and every inconsistency as a typed error.
#include "runtime/model/model_config.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <mneme/error.hpp>
#include <numbers>
#include <string>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "tests/support/reference.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

using mneme::errc;
using mneme::model::GgufFile;
using mneme::model::ModelConfig;
using mneme::model::RopePairing;
using mneme::model::RopeScaling;
using mneme::model::RopeScalingKind;
using mneme::test::as_bytes;
using mneme::test::GgmlType;
using mneme::test::GgufWriter;
using mneme::test::TinyModelSpec;

ModelConfig config_of(const GgufWriter& writer) {
  return mneme::model::read_config(GgufFile::from_bytes(as_bytes(writer.bytes()), "case"));
}

// The code read_config fails with; the sentence must contain `named`.
errc failure_of(const GgufWriter& writer, const std::string& named) {
  try {
    config_of(writer);
  } catch (const mneme::Error& error) {
    CAPTURE(error.what());
    CHECK(std::string(error.what()).find(named) != std::string::npos);
    return static_cast<errc>(error.code().value());
  }
  FAIL_CHECK("the configuration is accepted");
  return errc{};
}

}  // namespace

TEST_CASE("the sizes and constants of each family are read") {
  struct Case {
    const char* architecture;
    RopePairing pairing;
    bool requires_qkv_bias, has_qk_norm;
  };
  const Case cases[] = {{"llama", RopePairing::adjacent, false, false},
                        {"qwen2", RopePairing::halves, true, false},
                        {"qwen3", RopePairing::halves, false, true}};
  for (const Case& c : cases) {
    CAPTURE(c.architecture);
    TinyModelSpec spec;
    spec.architecture = c.architecture;
    spec.head_dim = 24;  // not n_embd / n_heads
    const ModelConfig config = config_of(mneme::test::tiny_model(spec));
    CHECK(config.architecture == c.architecture);
    CHECK(config.name == std::string("tiny ") + c.architecture);
    CHECK(config.n_layers == 2);
    CHECK(config.n_embd == 64);
    CHECK(config.heads.n_heads == 4);
    CHECK(config.heads.n_kv_heads == 2);
    CHECK(config.heads.head_dim == 24);
    CHECK(config.n_ff == 96);
    CHECK(config.n_vocab == mneme::test::kTinyVocabulary);
    CHECK(config.n_ctx_train == 512);
    CHECK(config.rms_eps == 1e-5F);
    CHECK(config.rope.n_rot == 24);
    CHECK(config.rope.base == 10'000.0);
    CHECK(config.rope.pairing == c.pairing);
    CHECK(config.rope.attention_factor == 1.0);
    CHECK(config.rope.inv_freq.size() == 12);
    CHECK(config.requires_qkv_bias == c.requires_qkv_bias);
    CHECK(config.has_qk_norm == c.has_qk_norm);
    CHECK(config.is_tied);
  }
}

TEST_CASE("optional keys have the defaults of the format") {
  GgufWriter file = mneme::test::tiny_model({});
  for (const char* key : {"attention.head_count_kv", "attention.key_length", "attention.value_length",
                          "rope.dimension_count", "rope.freq_base", "vocab_size"}) {
    file.remove(std::string("llama.") + key);
  }
  file.remove("general.name");
  file.remove("tokenizer.ggml.tokens");
  const ModelConfig config = config_of(file);
  CHECK(config.heads.n_kv_heads == 4);
  CHECK(config.heads.head_dim == 16);
  CHECK(config.rope.base == 10'000.0);
  CHECK(config.name.empty());
}

TEST_CASE("sizes may be of any integer type, or arrays that agree over the layers") {
  GgufWriter file = mneme::test::tiny_model({});
  file.set("llama.block_count", std::int8_t{2});
  file.set("llama.context_length", std::uint64_t{1'048'576});
  file.set_array<std::int32_t>("llama.feed_forward_length", {96, 96});
  file.set_array<std::uint64_t>("llama.attention.head_count", {4, 4});
  file.set_array<std::uint32_t>("llama.attention.head_count_kv", {2, 2});
  const ModelConfig config = config_of(file);
  CHECK(config.n_ctx_train == 1'048'576);
  CHECK(config.n_ff == 96);
  CHECK(config.heads.n_kv_heads == 2);
}

TEST_CASE("every required key is asked for by name") {
  const GgufWriter good = mneme::test::tiny_model({});
  for (const char* key :
       {"general.architecture", "llama.context_length", "llama.embedding_length", "llama.block_count",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"}) {
    CAPTURE(key);
    GgufWriter file = mneme::test::tiny_model({});
    file.remove(key);
    CHECK(failure_of(file, std::string(key) + "\" is missing") == errc::model_corrupt);
  }
}

namespace {

struct Defect {
  const char* name;
  errc code;
  const char* named;
  std::function<void(GgufWriter&)> apply;
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const Defect kDefects[] = {
    {"architecture phi3", errc::model_unsupported, "phi3",
     [](GgufWriter& f) { f.set("general.architecture", "phi3"); }},
    {"architecture with odd bytes", errc::model_unsupported, R"(%s\u000a)",
     [](GgufWriter& f) { f.set("general.architecture", "%s\n"); }},
    {"architecture as a number", errc::model_corrupt, "general.architecture",
     [](GgufWriter& f) { f.set("general.architecture", 1U); }},
    {"experts", errc::model_unsupported, "expert_count", [](GgufWriter& f) { f.set("llama.expert_count", 8U); }},
    {"soft-capping", errc::model_unsupported, "attn_logit_softcapping",
     [](GgufWriter& f) { f.set("llama.attn_logit_softcapping", 50.0F); }},
    {"another attention scale", errc::model_unsupported, "attention.scale",
     [](GgufWriter& f) { f.set("llama.attention.scale", 0.5F); }},
    {"block_count 0", errc::model_corrupt, "block_count", [](GgufWriter& f) { f.set("llama.block_count", 0U); }},
    {"block_count 1025", errc::model_corrupt, "block_count", [](GgufWriter& f) { f.set("llama.block_count", 1025U); }},
    {"block_count 2^32-1", errc::model_corrupt, "block_count", [](GgufWriter& f) { f.set("llama.block_count", ~0U); }},
    {"block_count -1", errc::model_corrupt, "block_count", [](GgufWriter& f) { f.set("llama.block_count", -1); }},
    {"block_count as a float", errc::model_corrupt, "block_count",
     [](GgufWriter& f) { f.set("llama.block_count", 2.0F); }},
    {"embedding_length 2^31", errc::model_corrupt, "embedding_length",
     [](GgufWriter& f) { f.set("llama.embedding_length", 1U << 31U); }},
    {"context_length 0", errc::model_corrupt, "context_length",
     [](GgufWriter& f) { f.set("llama.context_length", 0U); }},
    {"context_length 2^63", errc::model_corrupt, "context_length",
     [](GgufWriter& f) { f.set("llama.context_length", 1ULL << 63U); }},
    {"head_count 0", errc::model_corrupt, "head_count", [](GgufWriter& f) { f.set("llama.attention.head_count", 0U); }},
    {"more KV heads than heads", errc::model_corrupt, "head_count_kv",
     [](GgufWriter& f) { f.set("llama.attention.head_count_kv", 8U); }},
    {"KV heads that do not divide", errc::model_corrupt, "head_count_kv",
     [](GgufWriter& f) { f.set("llama.attention.head_count_kv", 3U); }},
    {"head_count that does not divide", errc::model_corrupt, "attention.head_count",
     [](GgufWriter& f) {
       f.set("llama.attention.head_count", 3U);
       f.set("llama.attention.head_count_kv", 1U);
       f.remove("llama.attention.key_length");
     }},
    {"layers with unequal heads", errc::model_unsupported, "head_count_kv",
     [](GgufWriter& f) {
       f.set_array<std::int32_t>("llama.attention.head_count_kv", {2, 1});
     }},
    {"too few layers in an array", errc::model_corrupt, "head_count_kv",
     [](GgufWriter& f) { f.set_array<std::int32_t>("llama.attention.head_count_kv", {2}); }},
    {"no layers in an array", errc::model_corrupt, "head_count_kv",
     [](GgufWriter& f) { f.set_array<std::int32_t>("llama.attention.head_count_kv", {}); }},
    {"negative in an array", errc::model_corrupt, "feed_forward_length",
     [](GgufWriter& f) {
       f.set_array<std::int32_t>("llama.feed_forward_length", {-96, -96});
     }},
    {"key_length 12", errc::model_unsupported, "multiples of 8",
     [](GgufWriter& f) {
       f.set("llama.attention.key_length", 12U);
       f.set("llama.attention.value_length", 12U);
     }},
    {"value_length differs", errc::model_unsupported, "value_length",
     [](GgufWriter& f) { f.set("llama.attention.value_length", 8U); }},
    {"eps 0", errc::model_corrupt, "epsilon",
     [](GgufWriter& f) { f.set("llama.attention.layer_norm_rms_epsilon", 0.0F); }},
    {"eps 1", errc::model_corrupt, "epsilon",
     [](GgufWriter& f) { f.set("llama.attention.layer_norm_rms_epsilon", 1.0F); }},
    {"eps NaN", errc::model_corrupt, "epsilon",
     [](GgufWriter& f) { f.set("llama.attention.layer_norm_rms_epsilon", std::nanf("")); }},
    {"rope dimension odd", errc::model_corrupt, "dimension_count",
     [](GgufWriter& f) { f.set("llama.rope.dimension_count", 15U); }},
    {"rope dimension above key length", errc::model_corrupt, "dimension_count",
     [](GgufWriter& f) { f.set("llama.rope.dimension_count", 32U); }},
    {"rope in part", errc::model_unsupported, "dimension_count",
     [](GgufWriter& f) { f.set("llama.rope.dimension_count", 8U); }},
    {"freq_base 0", errc::model_corrupt, "freq_base", [](GgufWriter& f) { f.set("llama.rope.freq_base", 0.0F); }},
    {"freq_base infinite", errc::model_corrupt, "freq_base",
     [](GgufWriter& f) { f.set("llama.rope.freq_base", kInfinity); }},
    {"frequencies overflow", errc::model_corrupt, "rope",
     [](GgufWriter& f) {
       f.set("llama.rope.freq_base", 1e-300);
       f.set("llama.rope.scaling.factor", 1e-300);
     }},
    {"scaling longrope", errc::model_unsupported, "longrope",
     [](GgufWriter& f) { f.set("llama.rope.scaling.type", "longrope"); }},
    {"scaling factor -1", errc::model_corrupt, "scaling.factor",
     [](GgufWriter& f) { f.set("llama.rope.scaling.factor", -1.0F); }},
    {"scaling factor NaN", errc::model_corrupt, "scale_linear",
     [](GgufWriter& f) { f.set("llama.rope.scale_linear", std::nanf("")); }},
    {"YaRN with a base of 1", errc::model_corrupt, "freq_base",
     [](GgufWriter& f) {
       f.set("llama.rope.scaling.type", "yarn");
       f.set("llama.rope.freq_base", 1.0F);
     }},
    {"YaRN with an original context of 0", errc::model_corrupt, "original_context_length",
     [](GgufWriter& f) {
       f.set("llama.rope.scaling.type", "yarn");
       f.set("llama.rope.scaling.original_context_length", 0U);
     }},
    {"YaRN with beta 0", errc::model_corrupt, "yarn_beta_slow",
     [](GgufWriter& f) {
       f.set("llama.rope.scaling.type", "yarn");
       f.set("llama.rope.scaling.yarn_beta_slow", 0.0F);
     }},
    {"rope_freqs too short", errc::model_corrupt, "rope_freqs.weight",
     [](GgufWriter& f) { f.add_tensor("rope_freqs.weight", {4}, GgmlType::f32, std::string(16, '\1')); }},
    {"rope_freqs of another type", errc::model_corrupt, "rope_freqs.weight",
     [](GgufWriter& f) { f.add_tensor("rope_freqs.weight", {8}, GgmlType::f16, std::string(16, '\1')); }},
    {"rope_freqs with a zero", errc::model_corrupt, "rope_freqs.weight",
     [](GgufWriter& f) { f.add_tensor("rope_freqs.weight", {8}, GgmlType::f32, std::string(32, '\0')); }},
    {"no embedding", errc::model_corrupt, "token_embd.weight",
     [](GgufWriter& f) { f.remove_tensor("token_embd.weight"); }},
    {"vocab_size differs", errc::model_corrupt, "vocab_size", [](GgufWriter& f) { f.set("llama.vocab_size", 319U); }},
    {"a token too few", errc::model_corrupt, "tokenizer.ggml.tokens",
     [](GgufWriter& f) { f.set_array<std::string>("tokenizer.ggml.tokens", std::vector<std::string>(319, "x")); }},
};

}  // namespace

TEST_CASE("each inconsistent or unsupported key is a typed error that names it") {
  const GgufWriter good = mneme::test::tiny_model({});
  for (const Defect& defect : kDefects) {
    CAPTURE(defect.name);
    GgufWriter file = good;
    defect.apply(file);
    CHECK(failure_of(file, defect.named) == defect.code);
  }
}

TEST_CASE("inverse frequencies follow base, factors and scaling") {
  const std::vector<double> plain = mneme::model::inverse_frequencies(8, 10'000.0, {}, {});
  REQUIRE(plain.size() == 4);
  const double expected[] = {1.0, 0.1, 0.01, 0.001};
  for (int i = 0; i < 4; ++i) CHECK(plain[i] == doctest::Approx(expected[i]).epsilon(1e-15));

  RopeScaling linear;
  linear.kind = RopeScalingKind::linear;
  linear.factor = 4.0;
  const std::vector<float> factors = {1.0F, 2.0F, 4.0F, 8.0F};
  const std::vector<double> scaled = mneme::model::inverse_frequencies(8, 10'000.0, linear, factors);
  for (int i = 0; i < 4; ++i) CHECK(scaled[i] == doctest::Approx(plain[i] / 4.0 / factors[i]).epsilon(1e-15));
  CHECK(mneme::model::attention_factor(linear) == 1.0);
}

TEST_CASE("YaRN keeps fast pairs, stretches slow ones and blends between") {
  RopeScaling yarn;
  yarn.kind = RopeScalingKind::yarn;
  yarn.factor = 4.0;
  yarn.original_context = 4096;
  const int n_rot = 128;
  const std::vector<double> plain = mneme::model::inverse_frequencies(n_rot, 1e6, {}, {});
  const std::vector<double> scaled = mneme::model::inverse_frequencies(n_rot, 1e6, yarn, {});
  // Turns within the original context decide; the bounds are whole pairs, hence the margin of one pair's ratio.
  const double pair_ratio = std::pow(1e6, 2.0 / n_rot);
  int blended = 0;
  for (int i = 0; i < n_rot / 2; ++i) {
    const double turns = 4096 * plain[i] / (2.0 * std::numbers::pi);
    CAPTURE(i);
    if (turns > 32.0 * pair_ratio) CHECK(scaled[i] == doctest::Approx(plain[i]).epsilon(1e-14));
    if (turns < 1.0 / pair_ratio) CHECK(scaled[i] == doctest::Approx(plain[i] / 4.0).epsilon(1e-14));
    const bool is_between = scaled[i] < plain[i] * 0.999 && scaled[i] > plain[i] / 4.0 * 1.001;
    blended += is_between ? 1 : 0;
    if (i > 0) CHECK(scaled[i] < scaled[i - 1]);
  }
  CHECK(blended > 10);
  CHECK(mneme::model::attention_factor(yarn) == doctest::Approx(1.0 + 0.1 * std::log(4.0)).epsilon(1e-15));
}

TEST_CASE("scaling keys reach the frequencies") {
  const std::vector<double> plain = config_of(mneme::test::tiny_model({})).rope.inv_freq;
  GgufWriter file = mneme::test::tiny_model({});
  file.set("llama.rope.scale_linear", 2.0F);
  CHECK(config_of(file).rope.inv_freq[3] == plain[3] / 2.0);
  file.set("llama.rope.scaling.factor", 4.0F);  // the newer key wins
  CHECK(config_of(file).rope.inv_freq[3] == plain[3] / 4.0);
  file.set("llama.rope.scaling.type", "none");
  CHECK(config_of(file).rope.inv_freq[3] == plain[3]);
  file.set("llama.rope.scaling.type", "yarn");
  file.set("llama.rope.scaling.attn_factor", 0.5F);
  CHECK(config_of(file).rope.attention_factor == doctest::Approx(0.5 * (1.0 + 0.1 * std::log(4.0))).epsilon(1e-15));
  file.set("llama.rope.scaling.yarn_ext_factor", 0.0F);  // plain interpolation
  CHECK(config_of(file).rope.attention_factor == 0.5);
  CHECK(config_of(file).rope.inv_freq[3] == plain[3] / 4.0);

  TinyModelSpec with_factors;
  with_factors.has_rope_freqs = true;
  const std::vector<double> slowed = config_of(mneme::test::tiny_model(with_factors)).rope.inv_freq;
  CHECK(slowed[0] == plain[0]);
  CHECK(slowed[7] == plain[7] / 4.0);
}

TEST_CASE("the real model says what its description says") {
  const auto path = mneme::test::real_model();
  const auto reference = mneme::test::reference_dir();
  if (!path || !reference) {
    MESSAGE("skipped: MNEME_TEST_MODEL or MNEME_REFERENCE_DIR is not set");
    return;
  }
  const GgufFile file = GgufFile::open(*path);
  const auto described =
      nlohmann::json::parse(mneme::test::read_file(*reference / "model/gguf/smollm2-135m-instruct-q4_1.json"));
  CHECK(file.version() == described["gguf_version"]);
  CHECK(file.size() == described["bytes"]);
  CHECK(file.data_offset() == described["tensor_data_offset"]);
  CHECK(file.keys().size() == described["metadata"].size());
  for (const auto& [key, entry] : described["metadata"].items()) {
    CAPTURE(key);
    const std::string type = entry["type"];
    if (type == "STRING") CHECK(file.require_string(key) == entry["value"].get<std::string>());
    if (type == "UINT32") CHECK(file.require_uint(key) == entry["value"]);
    if (type == "FLOAT32") CHECK(file.require_float(key) == entry["value"].get<double>());
    if (type == "BOOL") CHECK(file.find_bool(key) == entry["value"].get<bool>());
    if (entry.contains("length")) CHECK(file.find(key)->count == entry["length"]);
  }
  REQUIRE(file.tensors().size() == described["tensors"].size());
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const auto& tensor = file.tensors()[i];
    const auto& entry = described["tensors"][i];
    CAPTURE(tensor.name);
    CHECK(tensor.name == entry[0].get<std::string>());
    CHECK(tensor.ne == entry[1].get<std::vector<std::uint64_t>>());
    CHECK(mneme::gpu::traits(tensor.type).name == entry[2].get<std::string>());
    CHECK(tensor.offset == entry[3]);
  }
  const ModelConfig config = mneme::model::read_config(file);
  CHECK(config.heads.head_dim == 64);
  CHECK(config.n_vocab == 49'152);
  CHECK(config.rope.base == 100'000.0);
  CHECK(config.is_tied);
}
