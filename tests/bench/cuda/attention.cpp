// Attention as a decoded token and as a chunk of prefill do it, over initial tokens, units, the remainder prefix and
// the window; and units on their way into their slots.
#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/bench/cuda/bench.hpp"

namespace mneme::bench {
namespace {

using gpu::KvType;

// Tokens of each kind that a query sees.
struct Keys {
  std::int64_t n_init = 128, n_units = 16, block = 128, n_prefix = 64, n_local = 4096;
  std::int64_t visible() const { return n_init + n_units * block + n_prefix + n_local; }
};

struct Model {
  const char* name;
  gpu::HeadShape heads;
  Keys keys;
};

// The keys and values of some layers on a device, and chunks of queries over them. The same numbers on every device.
class Layers {
 public:
  Layers(Bench& bench, gpu::Device& device, const Model& model, KvType unit_type, int n_layers, int max_queries)
      : bench_(bench), device_(device), model_(model), unit_type_(unit_type) {
    const Keys& keys = model_.keys;
    const auto row = gpu::unit_bytes(model_.heads, unit_type, static_cast<int>(keys.block)).total();
    unit_bytes_ = (row + 63) / 64 * 64;
    for (int layer = 0; layer < n_layers; ++layer) {
      Layer& made = layers_.emplace_back();
      made.initial_k = stored(keys.n_init, 10);
      made.initial_v = stored(keys.n_init, 11);
      made.raw_k = stored(window_capacity(), 12);
      made.raw_v = stored(window_capacity(), 13);
      made.rotated_k = stored(window_capacity(), 14);
      made.units = device.allocate(unit_bytes_ * static_cast<std::size_t>(keys.n_units));
      for (std::int64_t u = 0; u < keys.n_units; ++u) {  // any tokens of the window
        device.pack_unit(model_.heads, KvType::f16, made.raw_k.data(), made.raw_v.data(), window_capacity(),
                         u % (window_capacity() / keys.block) * keys.block, static_cast<int>(keys.block), unit_type,
                         layout(), unit(made, u));
      }
    }
    const auto heads = static_cast<std::size_t>(model_.heads.n_heads * model_.heads.head_dim);
    queries_ = bench.random(device, static_cast<std::size_t>(max_queries) * heads * sizeof(float), Data::f32, 15);
    out_ = bench.poisoned(device, static_cast<std::size_t>(max_queries) * heads);
    mass_ = bench.poisoned(
        device, static_cast<std::size_t>(window_capacity()) * static_cast<std::size_t>(model_.heads.n_kv_heads));
  }

  void attend(int layer, int n_queries, bool with_mass) {
    const Layer& of = layers_[static_cast<std::size_t>(layer) % layers_.size()];
    const Keys& keys = model_.keys;
    std::vector<gpu::KvSpan> spans{span(of.initial_k, of.initial_v, keys.n_init, 0)};
    for (std::int64_t u = 0; u < keys.n_units; ++u) {
      spans.push_back(gpu::unit_span(model_.heads, unit_type_, unit(of, u), static_cast<int>(keys.block), layout()));
    }
    spans.push_back(span(of.raw_k, of.raw_v, keys.n_prefix, 0));
    gpu::KvSpan window = span(of.rotated_k, of.raw_v, keys.n_local + n_queries - 1, keys.n_prefix);
    window.first_pos = kFirstQuery - keys.n_local + 1;
    window.mask = gpu::KeyMask::window;
    window.query = gpu::QueryKind::local;
    spans.push_back(window);
    gpu::AttentionArgs args;
    args.shape = model_.heads;
    args.n_queries = n_queries;
    args.first_query_pos = kFirstQuery;
    args.n_local = keys.n_local;
    args.q_global = args.q_local = queries_.f32();
    args.spans = spans;
    args.out = out_.f32();
    args.key_mass = with_mass ? mass_.f32() : nullptr;
    device_.attention(args);
  }

  std::vector<float> out(int n_queries) {
    return bench_.download(device_, out_.data(),
                           static_cast<std::size_t>(n_queries * model_.heads.n_heads * model_.heads.head_dim));
  }
  void clear_mass() { device_.fill_zero(mass_.data(), mass_.bytes()); }

  // Bytes of keys and values that a query of a layer reads.
  double bytes() const {
    const Keys& keys = model_.keys;
    const auto per_token = static_cast<double>(2 * model_.heads.n_kv_heads * model_.heads.head_dim);
    return per_token * 2 * static_cast<double>(keys.n_init + keys.n_prefix + keys.n_local) +
           static_cast<double>(keys.n_units) *
               static_cast<double>(gpu::unit_bytes(model_.heads, unit_type_, static_cast<int>(keys.block)).total());
  }

 private:
  static constexpr std::int64_t kFirstQuery = 100'000, kMaxQueries = 512;
  struct Layer {
    gpu::Buffer initial_k, initial_v, raw_k, raw_v, rotated_k, units;
  };

  // The same for every number of queries, so that the numbers are the same.
  std::int64_t window_capacity() const { return model_.keys.n_prefix + model_.keys.n_local + kMaxQueries; }
  gpu::KeyLayout layout() const { return device_.resident_layout(static_cast<int>(model_.keys.block)); }
  std::byte* unit(const Layer& layer, std::int64_t u) const {
    return layer.units.at(unit_bytes_ * static_cast<std::size_t>(u));
  }
  gpu::Buffer stored(std::int64_t n_tokens, std::uint32_t seed) {
    const auto elements = static_cast<std::size_t>(n_tokens * model_.heads.n_kv_heads * model_.heads.head_dim);
    return bench_.random(device_, elements * 2, Data::f16, seed);
  }
  gpu::KvSpan span(const gpu::Buffer& k, const gpu::Buffer& v, std::int64_t n_tokens, std::int64_t first) const {
    gpu::KvSpan span;
    const auto skip = static_cast<std::size_t>(first * model_.heads.head_dim) * 2;
    span.k = k.at(skip);
    span.v = v.at(skip);
    span.n_tokens = n_tokens;
    span.head_stride = static_cast<std::int64_t>(k.bytes()) / (2 * model_.heads.n_kv_heads * model_.heads.head_dim);
    return span;
  }

  Bench& bench_;
  gpu::Device& device_;
  const Model& model_;
  KvType unit_type_;
  std::size_t unit_bytes_ = 0;
  std::vector<Layer> layers_;
  gpu::Buffer queries_, out_, mass_;
};

const char* name_of(KvType type) {
  return type == KvType::q8 ? "q8" : "f16";
}

std::vector<float> on_host(Bench& bench, const Model& model, KvType unit_type, int n_queries) {
  Layers host(bench, bench.reference(), model, unit_type, 1, n_queries);
  host.attend(0, n_queries, false);
  return host.out(n_queries);
}

void measure_decode(Bench& bench, const Model& model, KvType unit_type) {
  const std::string name = std::string("attention_") + model.name + "_" + name_of(unit_type);
  const double layer_bytes = Layers(bench, bench.device(), model, unit_type, 0, 1).bytes();
  const int n_layers = static_cast<int>(static_cast<double>(bench.sizes().rotation_bytes) / layer_bytes) + 1;
  bench.device().set_phase(gpu::Phase::decode);
  Layers layers(bench, bench.device(), model, unit_type, n_layers, 1);
  layers.attend(0, 1, false);
  bench.check(name, layers.out(1), on_host(bench, model, unit_type, 1), 1e-4);
  const double took = bench.seconds([&](int i) { layers.attend(i, 1, false); });
  bench.bandwidth_row(name, took, layer_bytes, bench.memory_gbps);
}

void measure_chunk(Bench& bench, const Model& model, int n_queries) {
  const std::string name = std::string("prefill_attention_") + model.name;
  bench.device().set_phase(gpu::Phase::prefill);
  Layers layers(bench, bench.device(), model, KvType::f16, 2, n_queries);
  layers.attend(0, n_queries, false);
  const int checked = std::min(n_queries, 2);
  bench.check(name, layers.out(checked), on_host(bench, model, KvType::f16, checked), 1e-3);
  const double work =
      4.0 * model.heads.head_dim * model.heads.n_heads * n_queries * static_cast<double>(model.keys.visible());
  bench.product_row(name, bench.seconds([&](int i) { layers.attend(i, n_queries, false); }), work);
  layers.clear_mass();
  bench.product_row(name + "_mass", bench.seconds([&](int i) { layers.attend(i, n_queries, true); }), work * 1.5);
}

// Rows of units on their way into slots, as after a miss, from ordinary memory and from room that the device fetches
// from by itself; and the way back, as after a pass that completes units.
void measure_copies(Bench& bench, const Model& model) {
  const int block = static_cast<int>(model.keys.block);
  const std::size_t n_units = bench.sizes().is_tiny ? 4 : 64;
  const std::size_t row = gpu::unit_bytes(model.heads, KvType::f16, block).total();
  gpu::Device& device = bench.device();
  const gpu::Buffer source = bench.random(device, row * n_units, Data::f16, 20);
  const gpu::Buffer slots = device.allocate(source.bytes());
  std::vector<std::byte> rows(source.bytes());
  device.download(rows.data(), source.data(), rows.size());
  const int n = bench.sizes().is_tiny ? 2 : 20;
  const auto measure = [&](const std::string& name, const std::vector<gpu::UnitUpload>& uploads) {
    device.fill_zero(slots.data(), slots.bytes());
    const double took = bench.seconds([&](int) { device.upload_units(model.heads, KvType::f16, block, uploads); }, n);
    std::vector<std::byte> got(rows.size());
    device.download(got.data(), slots.data(), got.size());
    bench.expect(name + ": the rows' bytes", got == rows);
    bench.bandwidth_row(name, took, static_cast<double>(rows.size()), bench.to_device_gbps);
  };
  const auto room = device.host_rows(row, n_units);
  std::vector<gpu::UnitUpload> ordinary, fetched;
  std::vector<std::shared_ptr<std::byte>> kept;
  for (std::size_t u = 0; u < n_units; ++u) {
    ordinary.push_back({rows.data() + u * row, slots.at(u * row)});
    const std::shared_ptr<std::byte> place = room == nullptr ? nullptr : room->take();
    if (place == nullptr) continue;
    std::memcpy(place.get(), rows.data() + u * row, row);
    fetched.push_back({place.get(), slots.at(u * row)});
    kept.push_back(place);  // a copy of the handle: the room stays taken
  }
  measure("upload_units_ordinary", ordinary);
  bench.expect("the device has room for rows", fetched.size() == n_units);
  if (fetched.size() == n_units) measure("upload_units_host_rows", fetched);
  std::size_t n_right = 0;
  const auto piece = [&](std::size_t i) { return std::span<const std::byte>(slots.at(i * row), row); };
  const double took = bench.seconds(
      [&](int) {
        n_right = 0;
        device.download_each(n_units, piece, [&](std::size_t i, std::span<const std::byte> bytes) {
          n_right += std::memcmp(bytes.data(), rows.data() + i * row, 64) == 0 ? 1 : 0;
        });
      },
      n);
  bench.expect("download_each: the rows' bytes", n_right == n_units);
  bench.bandwidth_row("download_each", took, static_cast<double>(rows.size()), bench.from_device_gbps);
}

}  // namespace

void measure_attention(Bench& bench) {
  std::vector<Model> models = {{"8b", {32, 8, 128}, {}}, {"1b", {32, 8, 64}, {}}, {"05b", {14, 2, 64}, {}}};
  if (bench.sizes().is_tiny) models = {{"tiny", {4, 2, 32}, {4, 2, 32, 8, 48}}};
  for (const Model& model : models) {
    for (const KvType type : {KvType::f16, KvType::q8}) measure_decode(bench, model, type);
    measure_chunk(bench, model, bench.sizes().is_tiny ? 8 : 512);
  }
  measure_copies(bench, models[0]);
}

}  // namespace mneme::bench
