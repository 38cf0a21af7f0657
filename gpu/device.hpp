// The compute boundary: one list of operations, with shapes and accumulation types stated once for every backend.
//
// A Device owns its memory, its weights and (host backend) its worker threads. All float*/void* arguments below are
// DEVICE pointers obtained from Buffer; only the operations of the same Device may read or write them. The host
// backend's device memory is ordinary memory, but callers must not rely on that: they move data with upload() and
// download().
//
// Threads: one thread uses a Device at a time (the engine thread). Operations are ordered as issued; download() waits
// for what it reads. Operations do not allocate device memory in steady state. Numbers: f32 unless a type is named.
// Every reduction has a fixed order, so results do not depend on the thread count, on how many tokens are processed
// together, or on where a unit is resident. Errors: mneme::Error with out_of_memory (allocate, load_*) or
// engine_faulted; nothing else throws for valid arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gpu/dtype.hpp"

namespace mneme::gpu {

// A weight matrix in host memory, as in a model file: n_out rows of n_in elements, each row packed by `type`.
struct HostMatrix {
  DType type = DType::f32;
  std::size_t n_in = 0;
  std::size_t n_out = 0;
  std::span<const std::byte> rows;      // [n_out] rows of row_bytes(type, n_in)
  std::vector<std::int32_t> row_order;  // [n_out]: row i of the matrix is file row row_order[i]; empty: file order
};

// A weight matrix resident on a device, in the device's own layout. Products are y = W x (+ bias), one column per
// token.
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual std::size_t n_in() const noexcept = 0;
  virtual std::size_t n_out() const noexcept = 0;
  virtual std::size_t bytes() const noexcept = 0;
};

class Device;

// Device memory, freed with the handle. Move-only; must not outlive its Device. Alignment: at least 64 bytes.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, std::size_t bytes) noexcept : device_(device), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      release();
      device_ = std::exchange(other.device_, nullptr);
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  ~Buffer() { release(); }

  void* data() const noexcept { return data_; }
  float* f32() const noexcept { return static_cast<float*>(data_); }
  std::byte* at(std::size_t offset) const noexcept { return static_cast<std::byte*>(data_) + offset; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  void release() noexcept;
  Device* device_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// One product of norm_linear: out[n_tokens, weight.n_out] = weight * input (+ bias).
struct LinearOutput {
  const Matrix* weight = nullptr;
  const float* bias = nullptr;  // [n_out] or null
  float* out = nullptr;         // [n_tokens, n_out]
};

// How keys and values are stored. Values are stored in databases; never renumber.
//   q8: K has one f16 scale per (KV head, channel), V one per (KV head, token); elements are int8, value = scale *
//   element.
enum class KvType : std::uint32_t { f32 = 1, f16 = 2, q8 = 4 };

constexpr std::size_t element_bytes(KvType type) noexcept {
  return type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1;
}

// The shape of the attention of one layer. Query head h reads KV head h / (n_heads / n_kv_heads).
struct HeadShape {
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;  // a multiple of 8
};

// Bytes of one unit (sealed block) of n_tokens in one layer: K, then V; with q8 each as its scales, then its elements:
//   f32, f16: K [n_kv_heads][n_tokens][head_dim], V the same
//   q8:       K scales [n_kv_heads][head_dim] f16, K int8; V scales [n_kv_heads][n_tokens] f16, V int8
struct UnitBytes {
  std::size_t k = 0;  // bytes of the K part; V starts here
  std::size_t v = 0;
  std::size_t total() const noexcept { return k + v; }
};
UnitBytes unit_bytes(const HeadShape& shape, KvType type, int n_tokens) noexcept;

enum class QueryKind { global, local };  // which of the two rotated queries a span is attended with

// Which keys of a span a query sees. t: position of the key, q: position of the query.
enum class KeyMask {
  all,     // every key
  prefix,  // q - t >= n_local
  window,  // 0 <= q - t < n_local
  causal,  // t <= q
};

// How the keys of a span lie: a token's channels together, or, by runs of kStripTokens tokens, a channel's tokens.
enum class KeyLayout { rows, strips };
constexpr int kStripTokens = 32;

// A run of consecutive keys and values of one layer. Element (KV head g, token i, channel j) of V stands at index
// (g * head_stride + i) * head_dim + j, likewise K in rows; K in strips has it at
// (g * head_stride + i - i % kStripTokens) * head_dim + j * kStripTokens + i % kStripTokens, and n_tokens and
// head_stride are then multiples of kStripTokens.
struct KvSpan {
  KvType type = KvType::f16;
  KeyLayout k_layout = KeyLayout::rows;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* k_scales = nullptr;  // q8 only: f16 [n_kv_heads][head_dim]
  const void* v_scales = nullptr;  // q8 only: f16 [n_kv_heads][head_stride]
  std::int64_t n_tokens = 0;
  std::int64_t head_stride = 0;  // tokens between two KV heads
  std::int64_t first_pos = 0;    // position of token 0, for the mask
  QueryKind query = QueryKind::global;
  KeyMask mask = KeyMask::all;
};

// The span over a unit in the layout of unit_bytes().
KvSpan unit_span(const HeadShape& shape, KvType type, const void* row, int n_tokens) noexcept;

// The same for a unit whose keys lie as `layout` says, which does not change its size.
KvSpan unit_span(const HeadShape& shape, KvType type, const void* slot, int n_tokens, KeyLayout layout) noexcept;

// One row on its way from host memory into a slot.
struct UnitUpload {
  const void* row = nullptr;  // host memory, unit_bytes() layout
  void* slot = nullptr;       // device memory
};

// Room for rows of one size in host memory from which a device fetches them by itself. Grows in few large pieces, which
// are kept until the end. Used by the thread that uses the device, which it must not outlive.
class HostRows {
 public:
  virtual ~HostRows() = default;  // waits until nothing here is read any more
  // Room for one row, 64-byte aligned, shared by everyone who may still hand it to upload_units(); free again when the
  // last of them lets go. No copy that was begun from it is then under way. Null if there is no more room.
  virtual std::shared_ptr<std::byte> take() = 0;
  virtual std::size_t bytes() const noexcept = 0;  // of all the room that exists so far
};

// The memory of a device that has its own.
struct DeviceMemory {
  std::size_t total = 0, free = 0;
  std::size_t scratch = 0;  // what the operations keep for themselves
};

// The next piece of device memory to be downloaded, and what is done with a piece when it is in host memory; i: its
// number.
using NextDownload = std::function<std::span<const std::byte>(std::size_t i)>;
using Downloaded = std::function<void(std::size_t i, std::span<const std::byte> bytes)>;

// Whose attention mass is added up per key: each query head's own, or the sum over the query heads of a KV head.
enum class MassHeads { per_query_head, per_kv_head };

// One execution chunk of one layer. For every query and head ONE joint softmax over the visible keys of all spans,
// scale 1/sqrt(head_dim); out = sum of p * V. Reduction order: spans as listed, keys ascending; logits, softmax and
// sums in f32. A query that sees no key gives zeros.
struct AttentionArgs {
  HeadShape shape;
  int n_queries = 0;
  std::int64_t first_query_pos = 0;
  std::int64_t n_local = 0;
  const float* q_global = nullptr;  // [n_queries, n_heads, head_dim]
  const float* q_local = nullptr;   // [n_queries, n_heads, head_dim]
  std::span<const KvSpan> spans;
  float* out = nullptr;  // [n_queries, n_heads, head_dim]
  float* span_mass =
      nullptr;  // [spans.size()] or null: set to the probability summed over queries, heads, keys of each span
  // Added to, per key of the LAST span (the window) and head, in ascending query order: the keys' probabilities.
  // [n_tokens][heads]
  float* key_mass = nullptr;  // or null
  MassHeads mass_heads = MassHeads::per_kv_head;
};

// A piece of a selector's index: for n_units consecutive units [n_units][heads][n_vectors][head_dim] vectors.
struct IndexSegment {
  KvType type = KvType::f16;  // f16 or f32
  const void* data = nullptr;
  int n_units = 0;
};

// The next consecutive units of an index, for an operation that asks until it has all: so an index that is larger than
// its memory can pass through it. Every run but the last holds a multiple of 64 units and stays valid until the next
// call. May throw; the operation then throws the same and has no other effect.
using NextIndexRun = std::function<std::span<const IndexSegment>()>;

// How a token is chosen from logits: bias, penalties, temperature, top_k, top_p, min_p, the draw, in this order and by
// the rules of runtime/model/sampler.hpp, which is the definition. Spans: host memory, ids within the vocabulary.
struct SampleArgs {
  float temperature = 0;  // 0: greedy
  std::int32_t top_k = 0;
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1, presence_penalty = 0;  // of the tokens in `recent`, once each
  std::span<const std::int32_t> recent;
  std::span<const std::pair<std::int32_t, float>> logit_bias;  // of one token's the last counts
  std::uint64_t seed = 0, position = 0;                        // decide the draw
};

struct SampledToken {
  enum class Outcome {
    chosen,
    no_logit,   // no logit is above -infinity
    none_left,  // none is left by the bias
  };
  Outcome outcome = Outcome::chosen;
  std::int32_t id = 0;
  float logprob = 0;  // natural logarithm of the token's probability by the logits as given
};

// What a forward pass is for. On some devices products of the two phases differ in bits; within a phase a token's
// result does not depend on the tokens beside it.
enum class Phase { prefill, decode };

struct DeviceInfo {
  std::string name;      // for people: "cpu (avx2, 2 threads)"
  std::string numerics;  // everything that decides the bits of results on this device: part of the numerics fingerprint
  int n_threads = 0;     // not part of the fingerprint
  int pass_tokens = 512;  // a longer forward pass gains no speed here; not part of the fingerprint either
};

// gpu/decode_plan.hpp
class DecodePlan;
struct DecodeModel;
struct DecodeMemory;

class Device {
 public:
  virtual ~Device();
  virtual DeviceInfo info() const = 0;
  // The phase of the operations that follow; at first prefill.
  virtual void set_phase(Phase phase) = 0;

  // ---- memory
  virtual Buffer allocate(std::size_t bytes) = 0;  // contents undefined
  virtual void upload(void* to_device, const void* from_host, std::size_t bytes) = 0;
  virtual void download(void* to_host, const void* from_device, std::size_t bytes) = 0;
  virtual void copy(void* to_device, const void* from_device, std::size_t bytes) = 0;  // ranges may overlap
  virtual void fill_zero(void* device, std::size_t bytes) = 0;
  virtual void synchronize() = 0;  // waits until all issued operations are done
  // Downloads n pieces with as few waits as possible. next(i) issues what writes piece i and says where it is; the next
  // piece may overwrite it. downloaded(i, bytes) gets the bytes, which are valid during the call, in ascending order;
  // it uses no operation of this device. What either throws ends the operation.
  virtual void download_each(std::size_t n, const NextDownload& next, const Downloaded& downloaded) = 0;
  // Room for at most max_rows rows of host memory that upload_units() fetches without a copy and without a wait. Null
  // where ordinary memory is as good.
  virtual std::unique_ptr<HostRows> host_rows(std::size_t row_bytes, std::size_t max_rows) = 0;
  // None where device memory is the host's. Where there is some, callers ask for what they can foresee at once.
  virtual std::optional<DeviceMemory> memory() const = 0;

  // ---- weights. `matrix.rows` must stay valid as long as the Device's use of the result (tables may read it in
  // place).
  virtual std::unique_ptr<Matrix> load_matrix(const HostMatrix& matrix) = 0;  // for products; any DType
  virtual std::unique_ptr<Matrix> load_table(const HostMatrix& matrix) = 0;   // for embed() only
  virtual std::size_t matrix_bytes(const HostMatrix& matrix) const = 0;       // of load_matrix()'s result

  // ---- transformer
  // x[i] = row ids[i] of the table, dequantised to f32. ids: host memory, each in [0, n_out). x: [ids.size(), n_in]
  virtual void embed(const Matrix& table, std::span<const std::int32_t> ids, float* x) = 0;
  // y = rms_norm(x) * norm, then every product of `outputs` on y. x: [n_tokens, n_in]; norm: [n_in]. Squares are summed
  // in a fixed order. norm == null: no normalisation (y = x).
  virtual void norm_linear(const float* x, int n_tokens, const float* norm, float eps,
                           std::span<const LinearOutput> outputs) = 0;
  // x[n_tokens, n_out] += W * in (+ bias). in: [n_tokens, n_in]
  virtual void linear_add(const float* in, int n_tokens, const Matrix& weight, const float* bias, float* x) = 0;
  // h = silu(gate * y + gate_bias) * (up * y + up_bias), y = rms_norm(x) * norm. h: [n_tokens, n_ff]. Biases may be
  // null.
  virtual void norm_glu(const float* x, int n_tokens, const float* norm, float eps, const Matrix& gate,
                        const float* gate_bias, const Matrix& up, const float* up_bias, float* h) = 0;
  // In place, per head: x = rms_norm(x) * norm. x: [n_tokens, n_heads, head_dim]; norm: [head_dim]
  virtual void head_norm(float* x, int n_tokens, int n_heads, int head_dim, const float* norm, float eps) = 0;

  // ---- positions
  // Rotates pairs (j, j + head_dim/2): out = (a*cos - b*sin, a*sin + b*cos). x, out: [n_tokens, n_heads, head_dim] (may
  // be the same); cos, sin: [n_tokens or 1, head_dim/2], row i * table_step (table_step 0: one row for all tokens).
  virtual void rope(const float* x, int n_tokens, int n_heads, int head_dim, const float* cos, const float* sin,
                    int table_step, float* out) = 0;

  // ---- keys and values
  // Rounds k, v [n_tokens, n_kv_heads, head_dim] f32 to `type` (f32 or f16) and writes them at token `offset` of raw_k,
  // raw_v and, rotated from the rounded bits (then rounded again), of rotated_k; all
  // [n_kv_heads][head_stride][head_dim]. cos, sin as in rope, step 1.
  virtual void append_kv(const HeadShape& shape, KvType type, const float* k, const float* v, int n_tokens,
                         const float* cos, const float* sin, void* raw_k, void* raw_v, void* rotated_k,
                         std::int64_t head_stride, std::int64_t offset) = 0;
  // Copies n_tokens stored tokens starting at `offset` of raw_k, raw_v (stored as `from`) into one unit row (unit_bytes
  // layout, type `to`). to == from: bit copy. to == q8: quantises (scale = amax/127 rounded to f16, round to nearest
  // even, 0 for a zero scale). layout: of the row's keys; strips: n_tokens is a multiple of kStripTokens.
  virtual void pack_unit(const HeadShape& shape, KvType from, const void* raw_k, const void* raw_v,
                         std::int64_t head_stride, std::int64_t offset, int n_tokens, KvType to, KeyLayout layout,
                         void* row) = 0;
  // How the keys of a unit of n_tokens tokens lie in a slot so that this device reads them best: rows as stored, or
  // strips, which only multiples of kStripTokens have. Spans given to this device are in rows or as this says.
  virtual KeyLayout resident_layout(int n_tokens) const noexcept = 0;
  // Copies rows of n_tokens tokens into slots, their keys then as resident_layout() says. No slot occurs twice. Rows
  // of HostRows may be read after the call: HostRows sees to it that they are not reused before.
  virtual void upload_units(const HeadShape& shape, KvType type, int n_tokens, std::span<const UnitUpload> units) = 0;
  // Rotates stored keys of a span into out (f32, [n_kv_heads][n_tokens][head_dim]); cos, sin: [n_tokens, head_dim/2].
  virtual void rotate_keys(const HeadShape& shape, const KvSpan& span, const float* cos, const float* sin,
                           float* out) = 0;
  virtual void attention(const AttentionArgs& args) = 0;

  // ---- selectors
  // Mean of the raw keys of each run of `page` tokens of a unit (span: K only). out:
  // [n_kv_heads][n_tokens/page][head_dim] f16 or f32 (out_type); f32 sums in token order, rounded once.
  virtual void page_means(const HeadShape& shape, const KvSpan& unit, int page, KvType out_type, void* out) = 0;
  // two_stage, stage 1 (score1 of specs 2.14) for n_units units. next_run hands over their vectors run by run. voters:
  // [n_voters, n_heads, head_dim] global queries. n_vectors: pages per unit. scores: [n_units]
  virtual void score_pages(const HeadShape& shape, const float* voters, int n_voters, int n_units,
                           const NextIndexRun& next_run, int n_vectors, float* scores) = 0;
  // two_stage, stage 2 (score2) over the exact stored keys of the candidates (K only). scores: [candidates.size()]
  virtual void score_keys(const HeadShape& shape, const float* voters, int n_voters, std::span<const KvSpan> candidates,
                          float* scores) = 0;
  // representatives: the mean raw key of the n_repr tokens with the largest mass, per head. mass: [n_tokens][heads];
  // out: [heads][head_dim] f16 or f32, heads = n_heads or n_kv_heads. Ties: lower token. NaN counts as -infinity.
  virtual void representatives(const HeadShape& shape, const KvSpan& unit, const float* mass, MassHeads heads,
                               int n_repr, KvType out_type, void* out) = 0;
  // representatives: relevance (2.8) of the chunk's mean global query. queries: [n_queries, n_heads, head_dim]; scores:
  // [total units]
  virtual void score_representatives(const HeadShape& shape, const float* queries, int n_queries,
                                     std::span<const IndexSegment> index, MassHeads heads, float* scores) = 0;
  // The k best of scores[n] (higher first; ties: lower index; NaN counts as -infinity), as ascending indices. Host
  // memory result; waits for the scores. k >= n: all indices.
  virtual std::vector<std::int32_t> top_k(const float* scores, int n, int k) = 0;

  // ---- sampling
  // Chooses a token from logits [n_vocab]. It is the one that model::Sampler chooses, with the same log-probability,
  // bit for bit. begin_sample() puts the choice behind what was issued and returns; false: this device cannot promise
  // that by these arguments, and the host has to choose. end_sample(), once for each true: the token; nullopt where the
  // logits forbid the promise. has_waited: the device has done all that was issued, so there is nothing to wait for.
  virtual bool begin_sample(const float* logits, int n_vocab, const SampleArgs& args) = 0;
  virtual std::optional<SampledToken> end_sample(bool has_waited) = 0;

  // ---- whole tokens
  // Decoding without the host between operations; null where the device has no such thing. The device outlives the
  // plan. Throws out_of_memory.
  virtual std::unique_ptr<DecodePlan> make_decode_plan(const DecodeModel& model, const DecodeMemory& memory);

 private:
  friend class Buffer;
  virtual void free(void* data, std::size_t bytes) noexcept = 0;
};

inline void Buffer::release() noexcept {
  if (device_ != nullptr) device_->free(data_, bytes_);
  device_ = nullptr;
  data_ = nullptr;
}

}  // namespace mneme::gpu
