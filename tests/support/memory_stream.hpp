// Random q, k, v streams through a memory::Context, with everything a test looks at recorded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu/device.hpp"
#include "memory/context.hpp"
#include "memory/memory_store.hpp"
#include "memory/params.hpp"

namespace mneme::test {

// The program's device, the host's with exact activations; isa empty: the best, or MNEME_ISA.
std::unique_ptr<gpu::Device> exact_device(int n_threads, const std::string& isa = {});

// A model shape with plain RoPE.
memory::ModelShape plain_shape(int n_layers, int n_heads, int n_kv_heads, int head_dim, double rope_base = 10000.0,
                               std::int64_t native_context = 1 << 20);

// q, k, v of every layer; element (head, t, j) by the counter generator described in the reference data's README.
struct Stream {
  gpu::HeadShape heads;
  std::int64_t n_tokens = 0;
  std::vector<std::vector<float>> q, k, v;  // per layer: [n_tokens][heads or kv heads][head_dim]

  std::span<const float> q_of(int layer, std::int64_t first, std::int64_t n) const;
  std::span<const float> k_of(int layer, std::int64_t first, std::int64_t n) const;
  std::span<const float> v_of(int layer, std::int64_t first, std::int64_t n) const;
};
float generated(std::uint64_t seed, std::uint64_t tensor, std::uint64_t head, std::uint64_t t, std::uint64_t j,
                float scale);
// Layer l is seeded with seed + l.
Stream make_stream(std::uint64_t seed, const memory::ModelShape& shape, std::int64_t n_tokens);

// [0,E), [E,2E), .., rest: the schedule of all reference data.
std::vector<std::int64_t> append_chunks(std::int64_t n_tokens, std::int64_t exec_chunk);

// One observed chunk of one layer.
struct ChunkRecord {
  int layer = 0;
  std::int64_t first = 0, end = 0;
  std::vector<std::int64_t> selected, candidates, voters;
  std::vector<float> scores, stage1, stage2;
};

struct RunOptions {
  std::int64_t max_pass_tokens = 512;
  memory::Budget budget{0, 64U << 20U};
  bool observe = true;
};

// A context with a store of its own, fed from a stream. `device` and `store` must outlive it.
class MemoryRun {
 public:
  MemoryRun(gpu::Device& device, memory::UnitStore& store, const memory::ModelShape& shape,
            const memory::Params& params, const RunOptions& options = {});

  // One pass over the next tokens of the stream; its outputs are appended to out().
  void pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths);
  // The same, but an Error abandons the pass; false then, with nothing recorded.
  bool try_pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths);
  // Starts a pass, runs its first n_layers layers and abandons it; records nothing.
  void abandoned_pass(const Stream& stream, std::span<const std::int64_t> chunk_lengths, int n_layers);
  // Appends of the given lengths, each cut by append_chunks and fed in as few passes as max_pass_tokens allows.
  void feed(const Stream& stream, std::span<const std::int64_t> segments);
  // The next n tokens in chunks of the absolute schedule.
  void feed_absolute(const Stream& stream, std::int64_t n_tokens);
  // Tokens [position, position + n), one by one.
  void decode(const Stream& stream, std::int64_t n_tokens);

  memory::Context& context() { return context_; }
  const std::vector<float>& out(int layer) const { return out_[static_cast<std::size_t>(layer)]; }  // [P'][H][d]
  // Records of one layer, in order.
  std::vector<ChunkRecord> records(int layer) const;
  // Forgets outputs and records so far.
  void clear();

 private:
  void run_layer(const Stream& stream, int layer, std::int64_t n);
  void forget_since(std::size_t n_values, std::size_t n_records);

  gpu::Device& device_;
  gpu::HeadShape heads_;
  int n_layers_;
  std::int64_t exec_chunk_, max_pass_;
  memory::Context context_;
  gpu::Buffer q_, k_, v_, out_buffer_;
  std::vector<std::vector<float>> out_;
  std::vector<ChunkRecord> records_;
};

// Random configurations in the ranges of specs/infllm.md 4.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::int64_t between(std::int64_t low, std::int64_t high);  // inclusive
  template <class T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + between(0, static_cast<std::int64_t>(values.size()) - 1));
  }

 private:
  std::uint64_t state_;
};
memory::Params random_params(Random& random, memory::SelectorKind selector);
// Segments of 1 .. 3E tokens, single tokens often, that add up to n_tokens.
std::vector<std::int64_t> random_segments(Random& random, std::int64_t n_tokens, std::int64_t exec_chunk);
std::string describe(const memory::Params& params);

// The largest |a - b|; infinity if the sizes differ or a value is NaN.
double largest_difference(std::span<const float> a, std::span<const double> b);
double largest_difference(std::span<const float> a, std::span<const float> b);
bool same_bits(std::span<const float> a, std::span<const float> b);

// The memory identity that tests use.
std::span<const std::byte, 16> test_identity();

}  // namespace mneme::test
