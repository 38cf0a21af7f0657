#include "support/memory_stream.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "mneme/error.hpp"
#include "tests/support/test_device.hpp"

namespace mneme::test {

std::unique_ptr<gpu::Device> exact_device(int n_threads, const std::string& isa) {
  return test_device({.n_threads = n_threads, .activations = gpu::ActivationType::f32, .isa = isa});
}

memory::ModelShape plain_shape(int n_layers, int n_heads, int n_kv_heads, int head_dim, double rope_base,
                               std::int64_t native_context) {
  memory::ModelShape shape;
  shape.architecture = "test";
  shape.n_layers = n_layers;
  shape.n_embd = static_cast<std::int64_t>(n_heads) * head_dim;
  shape.native_context = native_context;
  shape.heads = {n_heads, n_kv_heads, head_dim};
  for (int j = 0; j < head_dim / 2; ++j) shape.inv_freq.push_back(std::pow(rope_base, -2.0 * j / head_dim));
  return shape;
}

float generated(std::uint64_t seed, std::uint64_t tensor, std::uint64_t head, std::uint64_t t, std::uint64_t j,
                float scale) {
  std::uint64_t z = seed * 0x9E3779B97F4A7C15U + ((tensor * 64 + head) << 32U) + t * 256 + j;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  z ^= z >> 31U;
  return (static_cast<float>(z >> 40U) * 0x1p-23f - 1.0f) * scale;
}

Stream make_stream(std::uint64_t seed, const memory::ModelShape& shape, std::int64_t n_tokens) {
  Stream stream;
  stream.heads = shape.heads;
  stream.n_tokens = n_tokens;
  const auto dim = static_cast<std::uint64_t>(shape.heads.head_dim);
  for (int layer = 0; layer < shape.n_layers; ++layer) {
    const auto fill = [&](std::uint64_t tensor, int heads, float scale) {
      std::vector<float> values;
      values.reserve(static_cast<std::size_t>(n_tokens * heads) * dim);
      for (std::uint64_t t = 0; t < static_cast<std::uint64_t>(n_tokens); ++t)
        for (std::uint64_t h = 0; h < static_cast<std::uint64_t>(heads); ++h)
          for (std::uint64_t j = 0; j < dim; ++j)
            values.push_back(generated(seed + static_cast<std::uint64_t>(layer), tensor, h, t, j, scale));
      return values;
    };
    stream.q.push_back(fill(0, shape.heads.n_heads, 2.0f));
    stream.k.push_back(fill(1, shape.heads.n_kv_heads, 2.0f));
    stream.v.push_back(fill(2, shape.heads.n_kv_heads, 1.0f));
  }
  return stream;
}

namespace {
std::span<const float> part(const std::vector<float>& all, std::int64_t row, std::int64_t first, std::int64_t n) {
  return std::span(all).subspan(static_cast<std::size_t>(first * row), static_cast<std::size_t>(n * row));
}
}  // namespace

std::span<const float> Stream::q_of(int layer, std::int64_t first, std::int64_t n) const {
  return part(q[static_cast<std::size_t>(layer)], static_cast<std::int64_t>(heads.n_heads) * heads.head_dim, first, n);
}
std::span<const float> Stream::k_of(int layer, std::int64_t first, std::int64_t n) const {
  return part(k[static_cast<std::size_t>(layer)], static_cast<std::int64_t>(heads.n_kv_heads) * heads.head_dim, first,
              n);
}
std::span<const float> Stream::v_of(int layer, std::int64_t first, std::int64_t n) const {
  return part(v[static_cast<std::size_t>(layer)], static_cast<std::int64_t>(heads.n_kv_heads) * heads.head_dim, first,
              n);
}

std::vector<std::int64_t> append_chunks(std::int64_t n_tokens, std::int64_t exec_chunk) {
  std::vector<std::int64_t> chunks;
  for (std::int64_t done = 0; done < n_tokens; done += chunks.back())
    chunks.push_back(std::min(exec_chunk, n_tokens - done));
  return chunks;
}

std::span<const std::byte, 16> test_identity() {
  static constexpr std::array<std::byte, 16> kIdentity{std::byte{1}, std::byte{2}, std::byte{3}};
  return kIdentity;
}

MemoryRun::MemoryRun(gpu::Device& device, memory::UnitStore& store, const memory::ModelShape& shape,
                     const memory::Params& params, const RunOptions& options)
    : device_(device),
      heads_(shape.heads),
      n_layers_(shape.n_layers),
      exec_chunk_(params.exec_chunk),
      max_pass_(options.max_pass_tokens),
      context_(device, store, shape, params, options.budget, options.max_pass_tokens, test_identity()),
      out_(static_cast<std::size_t>(shape.n_layers)) {
  const std::size_t row =
      static_cast<std::size_t>(options.max_pass_tokens) * static_cast<std::size_t>(heads_.head_dim) * sizeof(float);
  q_ = device.allocate(row * static_cast<std::size_t>(heads_.n_heads));
  out_buffer_ = device.allocate(row * static_cast<std::size_t>(heads_.n_heads));
  k_ = device.allocate(row * static_cast<std::size_t>(heads_.n_kv_heads));
  v_ = device.allocate(row * static_cast<std::size_t>(heads_.n_kv_heads));
  if (!options.observe) return;
  context_.set_observer([this](const memory::ChunkReport& report) {
    ChunkRecord record{report.layer, report.first, report.end, {}, {}, {}, {}, {}, {}};
    for (const memory::SelectedUnit& unit : report.selected) {
      record.selected.push_back(unit.unit);
      record.scores.push_back(unit.score);
    }
    record.candidates.assign(report.candidates.begin(), report.candidates.end());
    record.voters.assign(report.voters.begin(), report.voters.end());
    record.stage1.assign(report.stage1.begin(), report.stage1.end());
    record.stage2.assign(report.stage2.begin(), report.stage2.end());
    records_.push_back(std::move(record));
  });
}

void MemoryRun::run_layer(const Stream& stream, int layer, std::int64_t n) {
  const std::int64_t first = context_.position();
  const auto q = stream.q_of(layer, first, n), k = stream.k_of(layer, first, n), v = stream.v_of(layer, first, n);
  device_.upload(q_.data(), q.data(), q.size_bytes());
  device_.upload(k_.data(), k.data(), k.size_bytes());
  device_.upload(v_.data(), v.data(), v.size_bytes());
  context_.attend(layer, q_.f32(), k_.f32(), v_.f32(), out_buffer_.f32());
  std::vector<float>& out = out_[static_cast<std::size_t>(layer)];
  const std::size_t had = out.size();
  out.resize(had + q.size());
  device_.download(out.data() + had, out_buffer_.data(), q.size_bytes());
}

void MemoryRun::pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths) {
  std::int64_t n = 0;
  for (const std::int64_t length : chunk_lengths) n += length;
  context_.begin_pass(chunk_lengths);
  for (int layer = 0; layer < n_layers_; ++layer) run_layer(stream, layer, n);
  context_.end_pass();
}

bool MemoryRun::try_pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths) {
  const std::size_t n_values = out_.front().size(), n_records = records_.size();
  try {
    pass(stream, chunk_lengths);
    return true;
  } catch (const Error&) {
    context_.abandon_pass();
    forget_since(n_values, n_records);
    return false;
  }
}

void MemoryRun::abandoned_pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths, int n_layers) {
  const std::size_t n_values = out_.front().size(), n_records = records_.size();
  std::int64_t n = 0;
  for (const std::int64_t length : chunk_lengths) n += length;
  context_.begin_pass(chunk_lengths);
  for (int layer = 0; layer < n_layers; ++layer) run_layer(stream, layer, n);
  context_.abandon_pass();
  forget_since(n_values, n_records);
}

void MemoryRun::forget_since(std::size_t n_values, std::size_t n_records) {
  for (auto& out : out_) out.resize(n_values);
  records_.resize(n_records);
}

void MemoryRun::feed(const Stream& stream, std::span<const std::int64_t> segments) {
  for (const std::int64_t segment : segments) {
    std::vector<std::int64_t> chunks;
    std::int64_t n = 0;
    for (const std::int64_t length : append_chunks(segment, exec_chunk_)) {
      if (n + length > max_pass_) {
        pass(stream, chunks);
        chunks.clear();
        n = 0;
      }
      chunks.push_back(length);
      n += length;
    }
    pass(stream, chunks);
  }
}

void MemoryRun::feed_absolute(const Stream& stream, std::int64_t n_tokens) {
  for (const std::int64_t length : context_.chunks_of(n_tokens)) pass(stream, std::span(&length, 1));
}

void MemoryRun::decode(const Stream& stream, std::int64_t n_tokens) {
  const std::int64_t one = 1;
  for (std::int64_t i = 0; i < n_tokens; ++i) pass(stream, std::span(&one, 1));
}

std::vector<ChunkRecord> MemoryRun::records(int layer) const {
  std::vector<ChunkRecord> found;
  std::copy_if(records_.begin(), records_.end(), std::back_inserter(found),
               [layer](const ChunkRecord& record) { return record.layer == layer; });
  return found;
}

void MemoryRun::clear() {
  for (auto& out : out_) out.clear();
  records_.clear();
}

std::uint64_t Random::next() {
  state_ += 0x9E3779B97F4A7C15U;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31U);
}

std::int64_t Random::between(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(high - low + 1));
}

memory::Params random_params(Random& random, memory::SelectorKind selector) {
  memory::Params params;
  params.selector = selector;
  params.n_init = random.between(0, 9);
  params.n_local = random.between(4, 64);
  params.block = random.between(1, 16);
  params.exec_chunk = random.between(1, params.n_local);
  params.topk = random.between(0, 6);
  params.global_distance = random.between(1, params.n_local - 1);
  params.repr_topk = random.between(1, params.block);
  params.rep_mode = random.pick({gpu::MassHeads::per_kv_head, gpu::MassHeads::per_query_head});
  do {
    params.page = random.between(1, params.block);
  } while (params.block % params.page != 0);
  params.shortlist = random.between(1, 4);
  params.voters = random.between(1, params.exec_chunk);
  params.cached_blocks = params.shortlist * params.topk + random.between(0, 3);
  params.store_type = gpu::KvType::f32;
  params.unit_type = gpu::KvType::f32;
  params.index_type = gpu::KvType::f32;
  return params;
}

std::vector<std::int64_t> random_segments(Random& random, std::int64_t n_tokens, std::int64_t exec_chunk) {
  std::vector<std::int64_t> segments;
  while (n_tokens > 0) {
    const std::int64_t longest = random.between(0, 2) == 0 ? 1 : 3 * exec_chunk;
    segments.push_back(std::min(n_tokens, random.between(1, longest)));
    n_tokens -= segments.back();
  }
  return segments;
}

std::string describe(const memory::Params& params) {
  return memory::identity_json(params) + " C " + std::to_string(params.cached_blocks);
}

double largest_difference(std::span<const float> a, std::span<const double> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest))
      largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
  }
  return largest;
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  const std::vector<double> wide(b.begin(), b.end());
  return largest_difference(a, wide);
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace mneme::test
