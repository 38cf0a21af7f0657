// Weights and identities: every tensor lands in its place, in the right order, or is named in an error.
#include "runtime/model/weights.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <mneme/error.hpp>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "gpu/quant_blocks.hpp"
#include "runtime/model/identity.hpp"
#include "tests/support/quantise.hpp"
#include "tests/support/reference.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

using mneme::errc;
using mneme::gpu::DType;
using mneme::model::GgufFile;
using mneme::model::ModelConfig;
using mneme::model::ModelWeights;
using mneme::test::as_bytes;
using mneme::test::GgmlType;
using mneme::test::GgufWriter;
using mneme::test::TinyModelSpec;

GgufFile load(const GgufWriter& writer) {
  return GgufFile::from_bytes(as_bytes(writer.bytes()), "case");
}

// The code that loading the whole model fails with; the sentence must contain `named`.
errc failure_of(const GgufWriter& writer, const std::string& named) {
  try {
    const GgufFile file = load(writer);
    map_weights(file, read_config(file));
    verify_weights(file);
  } catch (const mneme::Error& error) {
    CAPTURE(error.what());
    CHECK(std::string(error.what()).find(named) != std::string::npos);
    return static_cast<errc>(error.code().value());
  }
  FAIL_CHECK("the model loads");
  return errc{};
}

std::vector<float> floats_of(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

TEST_CASE("every matrix, norm and bias of every family is in its place") {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    CAPTURE(architecture);
    TinyModelSpec spec;
    spec.architecture = architecture;
    spec.has_biases = true;
    spec.is_tied = false;
    spec.n_layers = 3;
    spec.has_rope_freqs = true;
    const GgufFile file = load(mneme::test::tiny_model(spec));
    const ModelWeights weights = map_weights(file, read_config(file));
    CHECK(weights.ignored_tensors.empty());
    CHECK_FALSE(weights.is_tied);
    CHECK(weights.embedding.n_in == 64);
    CHECK(weights.embedding.n_out == 320);
    CHECK(weights.output.rows.data() == file.data(*file.find_tensor("output.weight")).data());
    CHECK(weights.output_norm.size() == 64);
    REQUIRE(weights.layers.size() == 3);
    const auto& layer = weights.layers[2];
    CHECK(layer.q.weight.n_out == 64);
    CHECK(layer.k.weight.n_out == 32);
    CHECK(layer.v.weight.rows.data() == file.data(*file.find_tensor("blk.2.attn_v.weight")).data());
    CHECK(layer.v.bias == floats_of(file.data(*file.find_tensor("blk.2.attn_v.bias"))));
    CHECK(layer.attn_output.weight.n_in == 64);
    CHECK(layer.down.weight.n_in == 96);
    CHECK(layer.down.bias.size() == 64);
    CHECK(layer.gate.weight.rows.size() == 64 * 96 * 4);
    CHECK(layer.q_norm.size() == (spec.architecture == "qwen3" ? 16 : 0));
    CHECK(layer.q.weight.row_order.empty() == (spec.architecture != "llama"));
    CHECK(layer.v.weight.row_order.empty());
  }
}

TEST_CASE("llama's adjacent rotation pairs become halves, weights and biases alike") {
  TinyModelSpec spec;
  spec.has_biases = true;
  GgufWriter writer = mneme::test::tiny_model(spec);
  const GgufFile file = load(writer);
  const auto layer = map_weights(file, read_config(file)).layers[1];
  const std::vector<float> bias = floats_of(file.data(*file.find_tensor("blk.1.attn_k.bias")));
  for (int head = 0; head < 2; ++head) {
    for (int pair = 0; pair < 8; ++pair) {
      const int at = head * 16;
      CHECK(layer.k.weight.row_order[at + pair] == at + 2 * pair);
      CHECK(layer.k.weight.row_order[at + 8 + pair] == at + 2 * pair + 1);
      CHECK(layer.k.bias[at + pair] == bias[at + 2 * pair]);
      CHECK(layer.k.bias[at + 8 + pair] == bias[at + 2 * pair + 1]);
    }
  }
  std::vector<std::int32_t> order = layer.q.weight.row_order;
  std::sort(order.begin(), order.end());
  for (int i = 0; i < 64; ++i) CHECK(order[i] == i);
}

TEST_CASE("tied models share one matrix, and biases may be F16") {
  GgufWriter writer = mneme::test::tiny_model({});
  const std::vector<float> bias(64, -1.5F);
  writer.add_tensor("blk.0.attn_output.bias", {64}, GgmlType::f16, mneme::test::quantise(DType::f16, bias));
  writer.add_tensor("blk.0.strange", {8}, GgmlType::f32, std::string(32, '\1'));
  writer.add_tensor("stranger", {8}, GgmlType::f32, std::string(32, '\1'));
  const GgufFile file = load(writer);
  const ModelWeights weights = map_weights(file, read_config(file));
  CHECK(weights.is_tied);
  CHECK(weights.output.rows.data() == weights.embedding.rows.data());
  CHECK(weights.layers[0].attn_output.bias == bias);
  CHECK(weights.ignored_tensors == std::vector<std::string>{"blk.0.strange", "stranger"});
}

TEST_CASE("each missing tensor is named") {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    TinyModelSpec spec;
    spec.architecture = architecture;
    const GgufWriter good = mneme::test::tiny_model(spec);
    for (const auto& tensor : good.tensors) {
      CAPTURE(tensor.name);
      GgufWriter file = good;
      file.remove_tensor(tensor.name);
      CHECK(failure_of(file, tensor.name + "\" is missing") == errc::model_corrupt);
    }
  }
}

TEST_CASE("each tensor of another shape, type or layer is named") {
  struct Defect {
    const char* name;
    errc code;
    const char* named;
    std::function<void(GgufWriter&)> apply;
  };
  const Defect defects[] = {
      {"transposed", errc::model_corrupt, "\"blk.1.attn_k.weight\" has the shape [32, 64]",
       [](GgufWriter& f) {
         f.tensor("blk.1.attn_k.weight").ne = {32, 64};
       }},
      {"too many heads claimed", errc::model_corrupt, "attn_q.weight",
       [](GgufWriter& f) { f.set("llama.attention.head_count", 8U); }},
      {"n_ff differs", errc::model_corrupt, "ffn_gate.weight",
       [](GgufWriter& f) { f.set("llama.feed_forward_length", 64U); }},
      {"embedding width differs", errc::model_corrupt, "token_embd.weight",
       [](GgufWriter& f) { f.set("llama.embedding_length", 32U); }},
      {"a third dimension", errc::model_corrupt, "ffn_down.weight",
       [](GgufWriter& f) {
         f.tensor("blk.0.ffn_down.weight").ne = {96, 32, 2};
       }},
      {"norm as a matrix", errc::model_corrupt, "attn_norm.weight",
       [](GgufWriter& f) {
         f.tensor("blk.0.attn_norm.weight").ne = {32, 2};
       }},
      {"norm in F16", errc::model_unsupported, "\"output_norm.weight\" has the type F16",
       [](GgufWriter& f) { f.tensor("output_norm.weight").type = 1; }},
      {"quantised bias", errc::model_unsupported, "attn_v.bias",
       [](GgufWriter& f) { f.add_tensor("blk.0.attn_v.bias", {32}, GgmlType::q8_0, std::string(34, '\0')); }},
      {"bias too short", errc::model_corrupt, "attn_v.bias",
       [](GgufWriter& f) { f.add_tensor("blk.0.attn_v.bias", {16}, GgmlType::f32, std::string(64, '\0')); }},
      {"a layer too many", errc::model_corrupt, "\"blk.2.attn_norm.weight\" belongs to no layer",
       [](GgufWriter& f) { f.add_tensor("blk.2.attn_norm.weight", {64}, GgmlType::f32, std::string(256, '\0')); }},
      {"a layer too few", errc::model_corrupt, "blk.2.attn_norm.weight",
       [](GgufWriter& f) { f.set("llama.block_count", 3U); }},
      {"NaN in a norm", errc::model_corrupt,
       "\"output_norm.weight\" holds an infinite or NaN value in row 0 at element 5",
       [](GgufWriter& f) { f.tensor("output_norm.weight").data.replace(20, 4, mneme::test::le(std::nanf(""))); }},
  };
  const GgufWriter good = mneme::test::tiny_model({});
  for (const Defect& defect : defects) {
    CAPTURE(defect.name);
    GgufWriter file = good;
    defect.apply(file);
    CHECK(failure_of(file, defect.named) == defect.code);
  }
}

TEST_CASE("the full check finds an infinite scale of every type") {
  for (const auto& traits : mneme::gpu::kDTypeTraits) {
    if (traits.type == DType::f32) continue;
    CAPTURE(traits.name);
    const std::vector<float> values(512, 0.5F);
    GgufWriter writer;
    writer.add_tensor("t", {256, 2}, mneme::test::ggml_type(traits.type), mneme::test::quantise(traits.type, values));
    CHECK_NOTHROW(verify_weights(load(writer)));
    const std::size_t last_block = writer.tensors[0].data.size() - traits.block_bytes;
    const std::size_t field = traits.type == DType::q6_k ? 208 : 0;
    const std::uint16_t infinity = traits.type == DType::bf16 ? 0x7F80 : 0xFC00;
    writer.tensors[0].data.replace(last_block + field, 2, mneme::test::le(infinity));
    CHECK_THROWS_WITH_AS(verify_weights(load(writer)), doctest::Contains("in row 1"), mneme::Error);
  }
}

TEST_CASE("the test quantiser stays within a step of its input") {
  std::vector<float> values(1024);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::sin(static_cast<float>(i) * 0.7F) * (1.0F + static_cast<float>(i % 5));
  }
  struct Case {
    DType type;
    double levels;  // between the smallest and largest value of a block
  };
  const Case cases[] = {{DType::f32, 1e7}, {DType::f16, 2048}, {DType::bf16, 120}, {DType::q8_0, 250},
                        {DType::q4_0, 14}, {DType::q4_1, 15},  {DType::q5_0, 30},  {DType::q5_1, 31},
                        {DType::q4_k, 13}, {DType::q5_k, 27},  {DType::q6_k, 60}};
  for (const Case& c : cases) {
    CAPTURE(mneme::gpu::traits(c.type).name);
    const std::string packed = mneme::test::quantise(c.type, values);
    REQUIRE(packed.size() == mneme::gpu::row_bytes(c.type, values.size()));
    std::vector<float> back(values.size());
    mneme::gpu::dequantise_row(c.type, reinterpret_cast<const std::byte*>(packed.data()), back.size(), back.data());
    double worst = 0.0;
    for (std::size_t i = 0; i < back.size(); ++i) worst = std::max(worst, std::abs(double{back[i]} - values[i]));
    CHECK(worst <= 10.0 / c.levels);  // values lie within [-5, 5]
    CHECK((worst == 0.0) == (c.type == DType::f32));
  }
}

TEST_CASE("generated models have a usable vocabulary and are the same every time") {
  for (const auto vocabulary : {mneme::test::TinyVocabulary::bpe, mneme::test::TinyVocabulary::spm}) {
    TinyModelSpec spec;
    spec.vocabulary = vocabulary;
    const GgufFile file = load(mneme::test::tiny_model(spec));
    const auto tokens = file.require_strings("tokenizer.ggml.tokens");
    CHECK(tokens.size() == 320);
    CHECK(std::set<std::string_view>(tokens.begin(), tokens.end()).size() == 320);
    CHECK(file.find_ints("tokenizer.ggml.token_type")->size() == 320);
    const std::set<std::string_view> known(tokens.begin(), tokens.end());
    for (const std::string_view merge :
         file.find_strings("tokenizer.ggml.merges").value_or(std::vector<std::string_view>{})) {
      CAPTURE(merge);
      const std::size_t space = merge.find(' ');
      CHECK(known.count(merge.substr(0, space)) == 1);
      CHECK(known.count(merge.substr(space + 1)) == 1);
    }
  }
  CHECK(mneme::test::tiny_model({}).bytes() == mneme::test::tiny_model({}).bytes());
  const auto path = mneme::test::write_tiny_model(std::filesystem::temp_directory_path());
  const GgufFile file = GgufFile::open(path);
  CHECK(weights_sha256(file) == "f08e203476229f6e653967a5eb801e18c08ce4019b3978054ffed5b60235cd8e");
  std::filesystem::remove(path);
}

TEST_CASE("identities follow content, not layout") {
  GgufWriter writer = mneme::test::tiny_model({});
  const GgufFile original = load(writer);
  std::reverse(writer.tensors.begin(), writer.tensors.end());
  writer.set("general.name", "another name");
  const GgufFile moved = load(writer);
  CHECK(weights_sha256(moved) == weights_sha256(original));
  CHECK(tokenizer_sha256(moved) == tokenizer_sha256(original));
  CHECK(template_sha256(moved) == template_sha256(original));

  writer.tensors[0].data[1] ^= 1;
  CHECK(weights_sha256(load(writer)) != weights_sha256(original));
  writer.set("tokenizer.chat_template", "");
  CHECK(tokenizer_sha256(load(writer)) == tokenizer_sha256(original));
  CHECK(template_sha256(load(writer)) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  writer.set("tokenizer.ggml.add_bos_token", true);
  CHECK(tokenizer_sha256(load(writer)) != tokenizer_sha256(original));
  writer.set("tokenizer.chat_template", std::string((1U << 20U) + 1, ' '));
  CHECK_THROWS_WITH_AS(template_sha256(load(writer)), doctest::Contains("tokenizer.chat_template"), mneme::Error);
}

TEST_CASE("the reference models load, or are refused as not supported yet") {
  const auto reference = mneme::test::reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  int loaded = 0, refused = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*reference / "model/logits/tiny")) {
    if (entry.path().extension() != ".gguf") continue;
    CAPTURE(entry.path().string());
    const std::string stem = entry.path().stem().string();
    const bool is_supported = stem.rfind("phi3", 0) != 0 && stem.rfind("gemma3", 0) != 0;
    const GgufFile file = GgufFile::open(entry.path());
    verify_weights(file);
    if (is_supported) {
      const ModelConfig config = read_config(file);
      const ModelWeights weights = map_weights(file, config);
      CHECK(weights.ignored_tensors.empty());
      CHECK(config.n_vocab == 512);
      ++loaded;
    } else {
      CHECK_THROWS_WITH_AS(read_config(file), doctest::Contains("architecture"), mneme::Error);
      ++refused;
    }
  }
  CHECK(loaded == 8);
  CHECK(refused == 3);
}

TEST_CASE("the real model's weights are complete and finite") {
  const auto path = mneme::test::real_model();
  if (!path) {
    MESSAGE("skipped: MNEME_TEST_MODEL is not set");
    return;
  }
  const GgufFile file = GgufFile::open(*path);
  const ModelWeights weights = map_weights(file, read_config(file));
  CHECK(weights.layers.size() == 30);
  CHECK(weights.is_tied);
  CHECK(weights.ignored_tensors.empty());
  CHECK(weights.embedding.type == DType::q8_0);
  CHECK(weights.layers[29].q.weight.row_order[1] == 2);
  verify_weights(file);
  CHECK(weights_sha256(file).size() == 64);
}
