// M20 and M6: recorded states of single layers, from the published implementation and from independent programs.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "memory/context_probe.hpp"
#include "memory/layout.hpp"
#include "support/memory_stream.hpp"
#include "support/reference.hpp"

namespace {

using namespace mneme;
using namespace mneme::test;
using memory::ContextProbe;
using memory::Params;
using nlohmann::json;

// Arrays of one .bin file.
class Arrays {
 public:
  explicit Arrays(const std::filesystem::path& path) : bytes_(read_file(path)) {}
  std::vector<float> at(const json& where) const {
    std::size_t n = 1;
    for (const json& extent : where.at("shape")) n *= extent.get<std::size_t>();
    std::vector<float> values(n);
    std::memcpy(values.data(), bytes_.data() + where.at("offset").get<std::size_t>(), n * sizeof(float));
    return values;
  }

 private:
  std::string bytes_;
};

Params common_params(const json& config) {
  Params params;
  params.n_init = config.at("n_init");
  params.n_local = config.at("n_local");
  params.block = config.at("B");
  params.topk = config.at("K");
  params.exec_chunk = config.at("E");
  params.global_distance = params.n_local - 1;
  params.store_type = params.unit_type = params.index_type = gpu::KvType::f32;
  return params;
}

memory::ModelShape shape_of(const json& config) {
  return plain_shape(1, config.at("H"), config.at("Hkv"), config.at("d"), config.at("rope_base"));
}

// A selection is compared where the recorded margin exceeds this (relative to the largest score).
constexpr double kMargin = 1e-5;

bool comparable(const json& chunk, const char* name) {
  return !chunk.contains(name) || chunk.at(name).is_null() || chunk.at(name).get<double>() > kMargin;
}

void check_layout(const json& chunk, const memory::Layout& layout) {
  const std::int64_t end = chunk.at("e");
  CHECK(layout.initial_tokens(end) == chunk.at("i").get<std::int64_t>());
  CHECK(layout.units(end) == chunk.at("nb").get<std::int64_t>());
  CHECK(layout.remainder_first(end) == chunk.at("F").get<std::int64_t>());
  CHECK(end - layout.remainder_first(end) == chunk.at("remainder").get<std::int64_t>());
  std::vector<std::int64_t> sealed;
  for (std::int64_t unit = layout.units(chunk.at("s")); unit < layout.units(end); ++unit) sealed.push_back(unit);
  CHECK(chunk.at("sealed").get<std::vector<std::int64_t>>() == sealed);
}

Params layer_params(const json& config, const json& variant) {
  Params params = common_params(config);
  params.selector = memory::SelectorKind::representatives;
  params.repr_topk = config.at("R");
  params.rep_mode =
      variant.at("rep_mode") == "per_kv_group" ? gpu::MassHeads::per_kv_head : gpu::MassHeads::per_query_head;
  return params;
}

// The cached score of each unit of `units`, under lru-s.
std::vector<double> cache_scores(const memory::Context& context, const std::vector<std::int64_t>& units) {
  std::vector<double> scores;
  for (const auto& cached : ContextProbe::cached(context, 0))
    if (std::binary_search(units.begin(), units.end(), cached.unit)) scores.push_back(cached.score);
  return scores;
}

void run_layer_variant(gpu::Device& device, const json& config, const std::string& name, const Arrays& arrays) {
  const json& variant = config.at("variants").at(name);
  Params params = layer_params(config, variant);
  params.reference_masks = name == "reference";
  if (name == "exact_per_kv_group_sequential") params.position_mode = memory::PositionMode::sequential;
  // With every unit resident and no decay, lru-s scores are the sums of the units' attention mass.
  params.cache_policy = memory::CachePolicy::lru_s;
  params.decay = 1.0;
  params.cached_blocks = memory::kAllUnits;
  const double tolerance = name == "reference" ? 1e-4 : 1e-5;
  CAPTURE(config.at("name").get<std::string>());
  CAPTURE(name);

  const memory::ModelShape shape = shape_of(config);
  const Stream stream = make_stream(config.at("seed"), shape, config.at("T"));
  memory::MemoryStore store;
  MemoryRun run(device, store, shape, params);
  const memory::Layout layout(params);
  std::vector<double> mass_before;
  for (const json& chunk : variant.at("chunks")) {
    const std::int64_t length = chunk.at("e").get<std::int64_t>() - chunk.at("s").get<std::int64_t>();
    const auto selected = chunk.at("selected").get<std::vector<std::int64_t>>();
    mass_before = cache_scores(run.context(), selected);
    run.pass(stream, std::span(&length, 1));
    const ChunkRecord record = run.records(0).back();
    CAPTURE(record.first);
    check_layout(chunk, layout);
    if (chunk.contains("relevance")) {
      CHECK(largest_difference(record.stage1, arrays.at(chunk.at("relevance"))) < 1e-4);
      CHECK(record.stage1.size() == static_cast<std::size_t>(layout.units(record.first)));
    }
    if (comparable(chunk, "margin")) CHECK(record.selected == selected);
    REQUIRE(record.selected == selected);
    if (chunk.contains("unit_mass")) {
      std::vector<float> received;
      const std::vector<double> after = cache_scores(run.context(), selected);
      for (std::size_t i = 0; i < after.size(); ++i) received.push_back(static_cast<float>(after[i] - mass_before[i]));
      // A sum of up to length * heads probabilities, rounded at every step.
      CHECK(largest_difference(received, arrays.at(chunk.at("unit_mass"))) <
            tolerance * std::max<double>(1.0, 0.1 * static_cast<double>(length) * shape.heads.n_heads));
    }
    if (chunk.contains("rep")) {
      std::vector<float> vectors;
      for (const std::int64_t unit : chunk.at("sealed")) {
        const auto of_unit = ContextProbe::index_vectors(run.context(), 0, unit);
        vectors.insert(vectors.end(), of_unit.begin(), of_unit.end());
      }
      CHECK(largest_difference(vectors, arrays.at(chunk.at("rep"))) < tolerance);
    }
    if (chunk.contains("r"))
      CHECK(largest_difference(ContextProbe::accumulators(run.context(), 0), arrays.at(chunk.at("r"))) < tolerance);
  }
  CHECK(largest_difference(run.out(0), arrays.at(variant.at("output"))) < tolerance);
}

void run_layer_directory(const std::filesystem::path& directory) {
  const json index = json::parse(read_file(directory / "index.json"));
  const auto device = exact_device(1, "scalar");
  for (const json& config : index.at("configs")) {
    const Arrays arrays(directory / config.at("file").get<std::string>());
    const auto seed = config.at("seed").get<std::uint64_t>();
    CHECK(generated(seed, 0, 0, 0, 0, 2.0f) == config.at("probe").at("q[0][0][0..3]")[0].get<float>());
    for (const auto& [name, variant] : config.at("variants").items()) run_layer_variant(*device, config, name, arrays);
  }
}

void run_two_stage(gpu::Device& device, const json& config, const Arrays& arrays) {
  Params params = common_params(config);
  params.selector = memory::SelectorKind::two_stage;
  params.page = config.at("page");
  params.shortlist = config.at("shortlist");
  params.voters = config.at("voters");
  params.cached_blocks = params.shortlist * params.topk;
  CAPTURE(config.at("file").get<std::string>());
  const memory::ModelShape shape = shape_of(config);
  const Stream stream = make_stream(config.at("seed"), shape, config.at("T"));
  memory::MemoryStore store;
  MemoryRun run(device, store, shape, params);
  const auto segments = config.at("segments").get<std::vector<std::int64_t>>();
  run.feed(stream, segments);
  const std::vector<ChunkRecord> records = run.records(0);
  REQUIRE(records.size() == config.at("chunks").size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    const json& chunk = config.at("chunks")[i];
    const ChunkRecord& record = records[i];
    CAPTURE(record.first);
    REQUIRE(record.first == chunk.at("s").get<std::int64_t>());
    REQUIRE(record.end == chunk.at("e").get<std::int64_t>());
    if (chunk.contains("score1")) {
      CHECK(record.voters == chunk.at("voters").get<std::vector<std::int64_t>>());
      CHECK(largest_difference(record.stage1, arrays.at(chunk.at("score1"))) <
            1e-5 * static_cast<double>(record.voters.size()) * shape.heads.n_heads);
    }
    if (chunk.contains("score2") && comparable(chunk, "margin1")) {
      CHECK(record.candidates == chunk.at("candidates").get<std::vector<std::int64_t>>());
      CHECK(largest_difference(record.stage2, arrays.at(chunk.at("score2"))) <
            1e-5 * static_cast<double>(record.voters.size()) * shape.heads.n_heads);
    }
    if (comparable(chunk, "margin1") && comparable(chunk, "margin2"))
      CHECK(record.selected == chunk.at("selected").get<std::vector<std::int64_t>>());
    REQUIRE(record.selected == chunk.at("selected").get<std::vector<std::int64_t>>());
  }
  CHECK(largest_difference(run.out(0), arrays.at(config.at("output"))) < 1e-5);
}

void run_two_stage_directory(const std::filesystem::path& directory) {
  const json index = json::parse(read_file(directory / "index.json"));
  const auto device = exact_device(1, "scalar");
  for (const json& config : index)
    run_two_stage(*device, config, Arrays(directory / config.at("file").get<std::string>()));
}

TEST_CASE("M20 parity: layers equal the recorded samples, in every variant") {
  run_layer_directory(data_dir() / "infllm" / "layer");
}

TEST_CASE("M6 parity: the two-stage selector equals the recorded samples") {
  run_two_stage_directory(data_dir() / "infllm" / "two_stage");
}

TEST_CASE("M20 parity: layers equal all recorded configurations") {
  const auto reference = reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  run_layer_directory(*reference / "infllm" / "layer");
}

TEST_CASE("M6 parity: the two-stage selector equals all recorded configurations") {
  const auto reference = reference_dir();
  if (!reference) {
    MESSAGE("skipped: MNEME_REFERENCE_DIR is not set");
    return;
  }
  run_two_stage_directory(*reference / "infllm" / "two_stage");
}

}  // namespace
