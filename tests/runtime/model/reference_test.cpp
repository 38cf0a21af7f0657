// Whole-model comparisons with independent implementations: logits, likelihoods, InfLLM selections.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mneme/error.hpp>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "tests/support/model_rig.hpp"
#include "tests/support/reference.hpp"

#include <doctest/doctest.h>

namespace mneme::test {

RowSummary summarise(std::span<const float> logits) {
  RowSummary summary;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[static_cast<std::size_t>(summary.top1)]) summary.top1 = static_cast<int>(i);
  }
  const double top = logits[static_cast<std::size_t>(summary.top1)];
  double sum = 0;
  for (const float value : logits) sum += std::exp(static_cast<double>(value) - top);
  summary.log_sum_exp = top + std::log(sum);
  return summary;
}

}  // namespace mneme::test

namespace {

using mneme::test::ModelRig;
using nlohmann::json;
namespace gpu = mneme::gpu;
namespace memory = mneme::memory;
namespace model = mneme::model;
namespace fs = std::filesystem;

constexpr gpu::ActivationType kF32 = gpu::ActivationType::f32;

json read_json(const fs::path& path) {
  return json::parse(mneme::test::read_file(path));
}

std::vector<float> read_floats(const fs::path& path, std::size_t offset_bytes, std::size_t count) {
  const std::string bytes = mneme::test::read_file(path);
  REQUIRE(bytes.size() >= offset_bytes + count * sizeof(float));
  std::vector<float> values(count);
  std::memcpy(values.data(), bytes.data() + offset_bytes, count * sizeof(float));
  return values;
}

std::vector<float> read_array(const fs::path& file, const json& array) {
  std::size_t count = 1;
  for (const auto& extent : array.at("shape")) count *= extent.get<std::size_t>();
  return read_floats(file, array.at("offset").get<std::size_t>(), count);
}

double max_difference(std::span<const float> a, std::span<const float> b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  return worst;
}

// The reference directory, or a message why the case skips.
#define REQUIRE_REFERENCE(name)                                          \
  const auto name = mneme::test::reference_dir();                        \
  if (!name) {                                                           \
    MESSAGE("skipped: MNEME_REFERENCE_DIR does not name the reference"); \
    return;                                                              \
  }

#define REQUIRE_MODEL(name)                                            \
  const auto name = mneme::test::real_model();                         \
  if (!name) {                                                         \
    MESSAGE("skipped: MNEME_TEST_MODEL does not name the test model"); \
    return;                                                            \
  }

bool quick() {
  return std::getenv("MNEME_TEST_QUICK") != nullptr;
}

struct SelectionCount {
  std::size_t compared = 0;
  std::size_t different = 0;
};

// Compares every selection with the recorded one where the recorded margin exceeds `margin`.
void observe_selections(memory::Context& context, const json& layers, const char* margin_name, double margin,
                        SelectionCount& count) {
  context.set_observer([&layers, &count, margin_name, margin,
                        next = std::vector<std::size_t>(layers.size())](const memory::ChunkReport& report) mutable {
    const auto layer = static_cast<std::size_t>(report.layer);
    const json& expected = layers[layer][next[layer]++];
    REQUIRE(expected.at("s").get<std::int64_t>() == report.first);
    if (!expected.contains(margin_name) || expected.at(margin_name).is_null() ||
        expected.at(margin_name).get<double>() < margin)
      return;
    const auto units = expected.at("selected").get<std::vector<std::int64_t>>();
    const bool equal =
        std::equal(units.begin(), units.end(), report.selected.begin(), report.selected.end(),
                   [](std::int64_t unit, const memory::SelectedUnit& selected) { return unit == selected.unit; });
    ++count.compared;
    if (!equal) ++count.different;
  });
}

}  // namespace

TEST_CASE("tiny models of every supported architecture and type give the reference logits") {
  REQUIRE_REFERENCE(reference);
  const fs::path directory = *reference / "model/logits/tiny";
  for (const json& entry : read_json(directory / "tiny.json")) {
    const std::string name = entry.at("name").get<std::string>();
    const std::string arch = entry.at("arch").get<std::string>();
    CAPTURE(name);
    if (arch != "llama" && arch != "qwen2" && arch != "qwen3") {
      CHECK_THROWS_AS(model::ModelFile::load(directory / (name + ".gguf")), mneme::Error);
      continue;
    }
    const std::vector<float> expected = read_floats(directory / (name + ".logits.f32"), 0, 3 * 24 * 512);
    for (const char* isa : {"scalar", ""}) {
      ModelRig rig(directory / (name + ".gguf"), {.n_threads = 1, .activations = kF32, .isa = isa});
      for (std::size_t sequence = 0; sequence < 3; ++sequence) {
        memory::MemoryStore store;
        const auto context = rig.context(mneme::test::full_attention_params(32, 7, gpu::KvType::f32), store);
        const auto tokens = entry.at("seqs")[sequence].get<std::vector<model::TokenId>>();
        const std::int64_t appends[] = {24};
        rig.feed(*context, tokens, appends, [&](std::size_t position, std::span<const float> row) {
          CHECK(max_difference(row, std::span(expected).subspan((sequence * 24 + position) * 512, 512)) <= 1e-4);
        });
      }
    }
  }
}

TEST_CASE("M20 tiny streams: logits and selections of the recorded InfLLM variants") {
  REQUIRE_REFERENCE(reference);
  const fs::path directory = *reference / "infllm/tiny";
  const json index = read_json(directory / "index.json");
  ModelRig rig(directory / index.at("model").get<std::string>(), {.n_threads = 2, .activations = kF32, .isa = ""}, 64);
  const fs::path data = directory / index.at("file").get<std::string>();
  for (const json& stream : index.at("streams")) {
    for (const auto& [variant, recorded] : stream.at("variants").items()) {
      CAPTURE(stream.at("name").get<std::string>());
      CAPTURE(variant);
      memory::Params params;
      params.n_init = stream.at("n_init");
      params.n_local = stream.at("n_local");
      params.block = stream.at("B");
      params.topk = stream.at("K");
      params.repr_topk = stream.at("R");
      params.exec_chunk = stream.at("E");
      params.global_distance = params.n_local - 1;
      params.selector = memory::SelectorKind::representatives;
      params.rep_mode = variant == "exact_per_kv_group" ? gpu::MassHeads::per_kv_head : gpu::MassHeads::per_query_head;
      params.reference_masks = variant == "reference";
      params.store_type = params.unit_type = params.index_type = gpu::KvType::f32;
      params.cached_blocks = params.topk + 1;
      memory::MemoryStore store;
      const auto context = rig.context(params, store);
      SelectionCount selections;
      observe_selections(*context, recorded.at("layers"), "margin", 1e-4, selections);
      const auto positions = stream.at("positions").get<std::vector<std::size_t>>();
      const std::vector<float> expected = read_array(data, recorded.at("logits"));
      std::size_t next = 0;
      rig.feed(*context, stream.at("tokens").get<std::vector<model::TokenId>>(),
               stream.at("segments").get<std::vector<std::int64_t>>(),
               [&](std::size_t position, std::span<const float> row) {
                 if (next == positions.size() || positions[next] != position) return;
                 CAPTURE(position);
                 CHECK(max_difference(row, std::span(expected).subspan(next * 512, 512)) <= 2e-4);
                 ++next;
               });
      CHECK(next == positions.size());
      CHECK(selections.compared > 0);
      CHECK(selections.different == 0);
    }
  }
}

TEST_CASE("the real model in float32 gives the reference logits, likelihoods and greedy tokens") {
  REQUIRE_REFERENCE(reference);
  REQUIRE_MODEL(path);
  if (quick()) return;
  const fs::path directory = *reference / "model/logits";
  ModelRig rig(*path, {.n_threads = 2, .activations = kF32, .isa = ""});
  const auto n_vocab = static_cast<std::size_t>(rig.file->config().n_vocab);

  SUBCASE("twelve prompts, then 32 greedy tokens each") {
    std::ifstream lines(directory / "smollm2_prompts.jsonl");
    std::size_t prompt = 0;
    for (std::string line; std::getline(lines, line); ++prompt) {
      const json entry = json::parse(line);
      CAPTURE(entry.at("name").get<std::string>());
      const auto ids = entry.at("ids").get<std::vector<model::TokenId>>();
      const std::vector<float> last = read_floats(directory / "smollm2_last_logits.f32", prompt * n_vocab * 4, n_vocab);
      memory::MemoryStore store;
      const auto context = rig.context(mneme::test::full_attention_params(512, 256, gpu::KvType::f32), store);
      const std::int64_t appends[] = {static_cast<std::int64_t>(ids.size())};
      int greedy = 0;
      rig.feed(*context, ids, appends, [&](std::size_t position, std::span<const float> row) {
        for (const json& pair : entry.at("top20")[position]) {
          CHECK(std::abs(row[pair[0].get<std::size_t>()] - pair[1].get<float>()) <= 1e-3);
        }
        if (position + 1 == ids.size()) CHECK(max_difference(row, last) <= 1e-3);
        greedy = mneme::test::summarise(row).top1;
      });
      for (std::size_t step = 0; step < 32; ++step) {
        if (entry.at("margins")[step].get<double>() <= 2e-3) break;
        CAPTURE(step);
        REQUIRE(greedy == entry.at("greedy")[step].get<int>());
        const std::int64_t one = 1;
        const model::TokenId token = greedy;
        greedy = mneme::test::summarise(rig.transformer.forward(*context, std::span(&token, 1), std::span(&one, 1),
                                                                gpu::Phase::decode, model::Transformer::Logits::last))
                     .top1;
      }
    }
    CHECK(prompt == 12);
  }

  SUBCASE("1,024 tokens of prose, teacher forced") {
    const auto ids = read_json(directory / "smollm2_long1024.json").at("ids").get<std::vector<model::TokenId>>();
    const std::string bin = mneme::test::read_file(directory / "smollm2_long1024.bin");
    const std::size_t n = ids.size();
    std::vector<float> nll(n - 1), margin(n);
    std::vector<std::int32_t> top1(n);
    std::memcpy(nll.data(), bin.data(), nll.size() * 4);
    std::memcpy(top1.data(), bin.data() + nll.size() * 4, n * 4);
    std::memcpy(margin.data(), bin.data() + nll.size() * 4 + n * 4, n * 4);
    memory::MemoryStore store;
    const auto context = rig.context(mneme::test::full_attention_params(1024, 256, gpu::KvType::f32), store);
    const std::int64_t appends[] = {static_cast<std::int64_t>(n)};
    double worst = 0;
    std::size_t flipped = 0;
    rig.feed(*context, ids, appends, [&](std::size_t position, std::span<const float> row) {
      const auto summary = mneme::test::summarise(row);
      if (margin[position] > 2e-3F && summary.top1 != top1[position]) ++flipped;
      if (position + 1 < n)
        worst = std::max(
            worst, std::abs(summary.log_sum_exp - row[static_cast<std::size_t>(ids[position + 1])] - nll[position]));
    });
    CHECK(worst <= 3e-4);
    CHECK(flipped == 0);
  }
}

TEST_CASE("the fast 8-bit path stays as near to float32 as the yardstick: mean KL below 3e-3") {
  REQUIRE_REFERENCE(reference);
  REQUIRE_MODEL(path);
  const fs::path directory = *reference / "model/logits";
  ModelRig rig(*path, {.n_threads = 2, .activations = gpu::ActivationType::int8, .isa = ""});
  const auto ids = read_json(directory / "smollm2_long1024.json").at("ids").get<std::vector<model::TokenId>>();
  const std::string top64 = mneme::test::read_file(directory / "smollm2_long1024_top64.bin");
  memory::MemoryStore store;
  const auto context = rig.context(mneme::test::full_attention_params(1024, 256, gpu::KvType::f16), store);
  const std::int64_t appends[] = {static_cast<std::int64_t>(ids.size())};
  double kl_sum = 0, kl_max = 0;
  std::size_t rows = 0;
  rig.feed(*context, ids, appends, [&](std::size_t position, std::span<const float> row) {
    if (position % 8 != 0) return;
    struct Record {
      float log_sum_exp;
      std::int32_t ids[64];
      float logits[64];
    } record;
    std::memcpy(&record, top64.data() + position / 8 * sizeof(Record), sizeof(Record));
    const double ours = mneme::test::summarise(row).log_sum_exp;
    double kl = 0, p_rest = 1, q_rest = 1;
    for (int i = 0; i < 64; ++i) {
      const double log_p = static_cast<double>(record.logits[i]) - record.log_sum_exp;
      const double log_q = row[static_cast<std::size_t>(record.ids[i])] - ours;
      kl += std::exp(log_p) * (log_p - log_q);
      p_rest -= std::exp(log_p);
      q_rest -= std::exp(log_q);
    }
    if (p_rest > 1e-12 && q_rest > 1e-12) kl += p_rest * std::log(p_rest / q_rest);
    kl_sum += kl;
    kl_max = std::max(kl_max, kl);
    ++rows;
  });
  MESSAGE("mean KL " << kl_sum / static_cast<double>(rows) << ", largest " << kl_max << " over " << rows
                     << " positions");
  CHECK(rows == 128);
  CHECK(kl_sum / static_cast<double>(rows) <= 3e-3);
  CHECK(kl_max <= 6e-2);
}

TEST_CASE("M20 the real model with its memory: likelihoods and selections of a 6,000-token stream") {
  REQUIRE_REFERENCE(reference);
  REQUIRE_MODEL(path);
  if (quick()) return;
  const fs::path directory = *reference / "infllm/smollm2";
  const json index = read_json(directory / "index.json");
  const json two_stage = read_json(directory / "two_stage.json");
  const auto tokens = index.at("tokens").get<std::vector<model::TokenId>>();
  ModelRig rig(*path, {.n_threads = 2, .activations = kF32, .isa = ""});

  struct Variant {
    const char* name;
    memory::SelectorKind selector;
  };
  const Variant variants[] = {{"two_stage", memory::SelectorKind::two_stage},
                              {"exact_per_kv_group", memory::SelectorKind::representatives}};
  for (const Variant& variant : variants) {
    CAPTURE(variant.name);
    const bool is_two_stage = variant.selector == memory::SelectorKind::two_stage;
    const json& recorded = is_two_stage ? two_stage : index.at("variants").at(variant.name);
    memory::Params params;
    params.n_init = index.at("n_init");
    params.n_local = index.at("n_local");
    params.block = index.at("B");
    params.topk = index.at("K");
    params.repr_topk = index.at("R");
    params.exec_chunk = index.at("E");
    params.global_distance = params.n_local - 1;
    params.selector = variant.selector;
    params.page = 32;
    params.shortlist = 4;
    params.voters = 32;
    params.store_type = params.unit_type = params.index_type = gpu::KvType::f32;
    params.cached_blocks = 96;
    memory::MemoryStore store;
    const auto context = rig.context(params, store, {0, 256U << 20U});
    SelectionCount selections;
    observe_selections(*context, recorded.at("layers"), is_two_stage ? "margin2" : "margin", 1e-4, selections);
    const std::vector<float> nll =
        read_array(directory / (is_two_stage ? "two_stage.bin" : "data.bin"), recorded.at("nll"));
    double sum = 0, worst = 0;
    const std::int64_t appends[] = {static_cast<std::int64_t>(tokens.size())};
    rig.feed(*context, tokens, appends, [&](std::size_t position, std::span<const float> row) {
      if (position + 1 == tokens.size()) return;
      const double value =
          mneme::test::summarise(row).log_sum_exp - row[static_cast<std::size_t>(tokens[position + 1])];
      sum += value;
      worst = std::max(worst, std::abs(value - nll[position]));
    });
    MESSAGE(variant.name << ": mean NLL " << sum / static_cast<double>(nll.size()) << ", recorded "
                         << recorded.at("nll_mean").get<double>() << ", largest difference " << worst
                         << ", selections compared " << selections.compared);
    CHECK(selections.different == 0);
    CHECK(worst <= 1e-3);
  }
}
