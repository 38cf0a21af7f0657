// Selection of a decode step on the device against the same through SelectOps and a list of splits made on the host:
// shortlist, attended units and splits are equal.
#include "gpu/cuda/decode_select.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "gpu/cuda/select_ops.hpp"
#include "gpu/quant_blocks.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu::cuda {
namespace {

using mneme::test::random_floats;
using test::Memory;
using test::Rig;
using test::same_bits;

const float kNan = std::nanf("");
constexpr int kLayers = 3, kLayer = 1;
constexpr std::int64_t kSegment = 64;
constexpr std::int32_t kUntouched = -7;

enum class Values { normal, small_integers, zeros };  // the latter: scores that are equal

struct Setup {
  HeadShape shape;
  bool two_stage = true;
  KvType index_type = KvType::f16, unit_type = KvType::f16, store_type = KvType::f16;
  int n_vectors = 2;
  MassHeads heads = MassHeads::per_kv_head;
  int block = 64, topk = 4, n_candidates = 16;
  std::int64_t max_units = 0;
  int n_slots = 24;  // slots of different contents, which units share
  Values values = Values::normal;
};

std::vector<std::byte> random_elements(KvType type, std::size_t n, Values values, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<std::byte> bytes(n * element_bytes(type));
  for (std::size_t i = 0; i < n; ++i) {
    float x = values == Values::zeros ? 0.0f : normal(random);
    if (values == Values::small_integers) x = static_cast<float>(random() % 3) - 1;
    const std::uint16_t half = f32_to_f16(x);
    if (type == KvType::f32) std::memcpy(&bytes[i * 4], &x, 4);
    if (type == KvType::f16) std::memcpy(&bytes[i * 2], &half, 2);
    if (type == KvType::q8)
      bytes[i] = static_cast<std::byte>(static_cast<std::int8_t>(std::clamp(x * 40, -127.f, 127.f)));
  }
  return bytes;
}

// A layer of an agent's memory in device memory, and what selection of one token makes of it.
class Agent {
 public:
  Agent(Rig& rig, const Setup& setup, unsigned seed) : rig_(rig), setup_(setup), ops_(rig.resources()), random_(seed) {
    const auto heads = static_cast<std::size_t>(setup.shape.n_heads),
               dim = static_cast<std::size_t>(setup.shape.head_dim);
    set_query(random_floats(random_, heads * dim, 1.0f));
    make_index();
    make_units();
    args_.state = static_cast<DecodeState*>(rig.allocate(sizeof(DecodeState)).data());
    args_.layer = kLayer;
    args_.n_heads = setup.shape.n_heads;
    args_.n_kv_heads = setup.shape.n_kv_heads;
    args_.head_dim = setup.shape.head_dim;
    args_.index_type = setup.index_type;
    args_.two_stage = setup.two_stage;
    args_.n_vectors = setup.n_vectors;
    args_.heads = setup.heads;
    args_.max_units = setup.max_units;
    args_.unit_type = setup.unit_type;
    args_.block = setup.block;
    args_.topk = setup.topk;
    args_.n_candidates = setup.n_candidates;
    args_.store_type = setup.store_type;
    args_.unit_arithmetic = Arithmetic::matrix;
    // The window's buffers are only pointed into.
    args_.raw_k = rig.allocate(64).at(32);
    args_.raw_v = rig.allocate(64).at(16);
    args_.rotated_k = rig.allocate(64).at(0);
    args_.capacity = 5000;
    args_.initial_k = rig.allocate(64).data();
    args_.initial_v = rig.allocate(64).at(8);
    args_.n_init = 200;
    max_wanted_ = static_cast<std::size_t>(std::max(setup.topk, setup.n_candidates));
    args_.max_splits = 200 + static_cast<int>(max_wanted_) * ((setup.block + kSplitKeys - 1) / kSplitKeys);
    args_.splits = static_cast<AttentionSplit*>(
        rig.allocate(static_cast<std::size_t>(args_.max_splits) * sizeof(AttentionSplit)).data());
    args_.n_splits = static_cast<std::int32_t*>(rig.allocate(sizeof(std::int32_t)).data());
    args_.unit_splits = static_cast<UnitSplits*>(rig.allocate(sizeof(UnitSplits)).data());
    args_.wanted = static_cast<std::int32_t*>(rig.allocate(max_wanted_ * sizeof(std::int32_t)).data());
    args_.n_wanted = static_cast<std::int32_t*>(rig.allocate(sizeof(std::int32_t)).data());
    const std::size_t scratch = decode_select_scratch(args_);
    args_.scratch = static_cast<std::byte*>(rig.allocate(scratch).data());
    check(cudaMemsetAsync(args_.scratch, 0, scratch, rig.stream()), "clearing");
    scores_ = &rig.allocate(static_cast<std::size_t>(setup.max_units) * sizeof(float));
  }

  void set_query(const std::vector<float>& query) { args_.query = rig_.upload(query).f32(); }
  void set_slot(std::int64_t unit, const void* slot) {
    slots_[static_cast<std::size_t>(unit)] = slot;
    put(const_cast<const void**>(args_.slots) + unit, &slot, sizeof slot);
  }
  // Gives units [0, n) of the index the entry of unit 0, so that their scores are equal.
  void repeat_first_entry(int n) {
    for (int u = 1; u < n; ++u) {
      const auto segment = static_cast<std::size_t>(u / kSegment),
                 within = static_cast<std::size_t>(kLayer * kSegment + u % kSegment);
      check(cudaMemcpyAsync(static_cast<std::byte*>(const_cast<void*>(segments_[segment])) + within * entry_bytes_,
                            static_cast<const std::byte*>(segments_[0]) + kLayer * kSegment * entry_bytes_,
                            entry_bytes_, cudaMemcpyDeviceToDevice, rig_.stream()),
            "copying");
    }
  }

  struct Result {
    std::vector<std::int32_t> wanted;
    std::vector<AttentionSplit> splits;
    UnitSplits units;
    std::int32_t missing_layer = -1;
    bool lists = true;  // splits were written
  };

  // Through the kernels.
  Result select(const DecodeState& state) {
    put(args_.state, &state, sizeof state);
    const std::vector<AttentionSplit> poison(static_cast<std::size_t>(args_.max_splits), poisoned());
    put(args_.splits, poison.data(), poison.size() * sizeof(AttentionSplit));
    put(args_.n_splits, &kUntouched, sizeof kUntouched);
    put(args_.n_wanted, &kUntouched, sizeof kUntouched);
    REQUIRE(launch_decode_select(args_, rig_.stream()) == cudaSuccess);
    Result result;
    result.missing_layer = get<DecodeState>(args_.state, 1)[0].missing_layer;
    const std::int32_t n_wanted = get<std::int32_t>(args_.n_wanted, 1)[0];
    const std::int32_t n_splits = get<std::int32_t>(args_.n_splits, 1)[0];
    const std::vector<AttentionSplit> splits = get<AttentionSplit>(args_.splits, poison.size());
    touched_ = n_wanted != kUntouched;
    if (touched_) {
      REQUIRE(n_wanted >= 0);
      REQUIRE(static_cast<std::size_t>(n_wanted) <= max_wanted_);
      result.wanted = get<std::int32_t>(args_.wanted, static_cast<std::size_t>(n_wanted));
    }
    result.lists = n_splits != kUntouched;
    if (result.lists) result.units = get<UnitSplits>(args_.unit_splits, 1)[0];
    const std::size_t listed = result.lists ? static_cast<std::size_t>(n_splits) : 0;
    REQUIRE(listed <= splits.size());
    result.splits.assign(splits.begin(), splits.begin() + static_cast<std::ptrdiff_t>(listed));
    const AttentionSplit clean = poisoned();
    for (std::size_t i = listed; i < splits.size(); ++i) REQUIRE(same_bits(&splits[i], &clean, sizeof clean));
    return result;
  }
  bool touched() const { return touched_; }  // by the last selection

  // Through the operations of a device, layer by layer.
  Result expect(const DecodeState& state) {
    Result result;
    const int n = static_cast<int>(state.n_units);
    std::vector<std::int32_t> attended;
    if (state.choice != UnitChoice::none) attended = all(n);
    result.wanted = attended;
    if (state.choice == UnitChoice::ranked && setup_.two_stage) {
      if (n > setup_.n_candidates) {
        ops_.score_pages(setup_.shape, args_.query, 1, n, index_of(n), setup_.n_vectors, scores_->f32());
        result.wanted = ops_.top_k(scores_->f32(), n, setup_.n_candidates);
      }
      attended = result.wanted;
      if (missing(result)) return list(state, result, std::min(attended.size(), static_cast<std::size_t>(setup_.topk)));
      const int n_short = static_cast<int>(attended.size());
      if (n_short > setup_.topk) {
        std::vector<KvSpan> spans;
        for (const std::int32_t unit : result.wanted) spans.push_back(span_of(unit));
        ops_.score_keys(setup_.shape, args_.query, 1, spans, scores_->f32());
        attended.clear();
        for (const std::int32_t i : ops_.top_k(scores_->f32(), n_short, setup_.topk))
          attended.push_back(result.wanted[static_cast<std::size_t>(i)]);
      }
    } else if (state.choice == UnitChoice::ranked && n > setup_.topk) {
      const NextIndexRun run = index_of(n);
      ops_.score_representatives(setup_.shape, args_.query, 1, run(), setup_.heads, scores_->f32());
      result.wanted = attended = ops_.top_k(scores_->f32(), n, setup_.topk);
    }
    if (missing(result)) return list(state, result, attended.size());
    for (const KvSpan& span : spans_of(state, attended)) add_splits(span, result.splits);
    result.units = places(state, attended.size());
    return result;
  }

  void check_equal(const DecodeState& state) {
    INFO("units " << state.n_units << ", choice " << static_cast<int>(state.choice));
    const Result want = expect(state);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const Result got = select(state);
      CHECK(got.wanted == want.wanted);
      CHECK(got.missing_layer == want.missing_layer);
      CHECK(got.lists == want.lists);
      CHECK(got.units.first == want.units.first);
      CHECK(got.units.end == want.units.end);
      CHECK(same_bits(got.splits, want.splits));
    }
  }

 private:
  static AttentionSplit poisoned() {
    AttentionSplit split;
    split.head_stride = split.first_pos = kUntouched;
    split.n_keys = split.span = kUntouched;
    return split;
  }
  void put(void* to, const void* from, std::size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, rig_.stream()), "uploading");
    check(cudaStreamSynchronize(rig_.stream()), "uploading");
  }
  template <class T>
  std::vector<T> get(const void* from, std::size_t n) {
    std::vector<T> values(n);
    check(cudaMemcpyAsync(values.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost, rig_.stream()), "downloading");
    check(cudaStreamSynchronize(rig_.stream()), "downloading");
    return values;
  }
  static std::vector<std::int32_t> all(int n) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) ids[static_cast<std::size_t>(i)] = i;
    return ids;
  }

  void make_index() {
    const HeadShape& shape = setup_.shape;
    const int vectors = setup_.two_stage                            ? shape.n_kv_heads * setup_.n_vectors
                        : setup_.heads == MassHeads::per_query_head ? shape.n_heads
                                                                    : shape.n_kv_heads;
    const std::size_t elements = static_cast<std::size_t>(vectors) * static_cast<std::size_t>(shape.head_dim);
    entry_bytes_ = elements * element_bytes(setup_.index_type);
    const std::size_t layer_bytes = entry_bytes_ * kSegment;
    for (std::int64_t first = 0; first < setup_.max_units; first += kSegment) {
      Memory& memory = rig_.allocate(layer_bytes * kLayers);  // the other layers stay NaN
      const std::vector<std::byte> layer =
          random_elements(setup_.index_type, elements * kSegment, setup_.values, random_);
      memory.upload(layer.data(), layer.size(), layer_bytes * kLayer);
      segments_.push_back(memory.data());
    }
    segments_.push_back(nullptr);  // so that there is something to upload
    args_.segments = static_cast<const void* const*>(rig_.upload(segments_).data());
  }
  void make_units() {
    const UnitBytes bytes = unit_bytes(setup_.shape, setup_.unit_type, setup_.block);
    std::vector<const void*> contents;
    for (int s = 0; s < setup_.n_slots; ++s) {
      const auto scales = static_cast<std::size_t>(setup_.shape.n_kv_heads * setup_.shape.head_dim);
      const std::size_t scale_bytes = setup_.unit_type == KvType::q8 ? scales * 2 : 0;
      std::vector<std::byte> keys = random_elements(
          setup_.unit_type, (bytes.k - scale_bytes) / element_bytes(setup_.unit_type), setup_.values, random_);
      Memory& memory = rig_.allocate(bytes.total());
      if (scale_bytes > 0) {
        std::vector<std::uint16_t> values(scales);
        for (std::uint16_t& value : values) value = f32_to_f16(std::abs(random_floats(random_, 1, 1.0f)[0]) / 64);
        memory.upload(values.data(), scale_bytes);
      }
      memory.upload(keys.data(), keys.size(), scale_bytes);
      contents.push_back(memory.data());
    }
    for (std::int64_t u = 0; u < setup_.max_units; ++u)
      slots_.push_back(contents[static_cast<std::size_t>(u * 7 % setup_.n_slots)]);
    slots_.push_back(nullptr);
    args_.slots = static_cast<const void* const*>(rig_.upload(slots_).data());
  }

  NextIndexRun index_of(int n_units) {
    runs_.clear();
    for (int first = 0; first < n_units; first += kSegment) {
      const auto* data = static_cast<const std::byte*>(segments_[static_cast<std::size_t>(first / kSegment)]);
      runs_.push_back(
          {setup_.index_type, data + kLayer * kSegment * entry_bytes_, std::min<int>(kSegment, n_units - first)});
    }
    return [this] { return std::span<const IndexSegment>(runs_); };
  }
  KvSpan span_of(std::int32_t unit) const {
    return unit_span(setup_.shape, setup_.unit_type, slots_[static_cast<std::size_t>(unit)], setup_.block);
  }
  bool missing(Result& result) const {
    for (const std::int32_t unit : result.wanted) {
      if (slots_[static_cast<std::size_t>(unit)] == nullptr) result.missing_layer = kLayer;
    }
    return result.missing_layer >= 0;
  }
  UnitSplits places(const DecodeState& state, std::size_t n_units) const {
    const auto splits_of = [](std::int64_t n) { return static_cast<std::int32_t>((n + kSplitKeys - 1) / kSplitKeys); };
    const std::int32_t first = splits_of(state.n_initial);
    return {first, first + static_cast<std::int32_t>(n_units) * splits_of(setup_.block)};
  }
  // Behind a miss: the places of n_units units are not written.
  Result list(const DecodeState& state, Result result, std::size_t n_units) const {
    for (const KvSpan& span : spans_of(state, {})) add_splits(span, result.splits);
    result.units = places(state, n_units);
    result.splits.insert(result.splits.begin() + result.units.first,
                         static_cast<std::size_t>(result.units.end - result.units.first), poisoned());
    return result;
  }
  std::vector<KvSpan> spans_of(const DecodeState& state, const std::vector<std::int32_t>& units) const {
    const auto window = [&](const void* k, std::int64_t first, std::int64_t n) {
      const std::int64_t skip =
          first * setup_.shape.head_dim * static_cast<std::int64_t>(element_bytes(setup_.store_type));
      KvSpan span;
      span.type = setup_.store_type;
      span.k = static_cast<const std::byte*>(k) + skip;
      span.v = static_cast<const std::byte*>(args_.raw_v) + skip;
      span.n_tokens = n;
      span.head_stride = args_.capacity;
      span.first_pos = first - state.offset;
      return span;
    };
    KvSpan initial;
    initial.type = setup_.store_type;
    initial.k = args_.initial_k;
    initial.v = args_.initial_v;
    initial.n_tokens = state.n_initial;
    initial.head_stride = args_.n_init;
    std::vector<KvSpan> spans{initial};
    for (const std::int32_t unit : units) spans.push_back(span_of(unit));
    spans.push_back(window(args_.raw_k, state.prefix_first, state.n_prefix));
    spans.push_back(window(args_.rotated_k, state.window_first, state.n_window));
    spans.back().query = QueryKind::local;
    spans.back().mask = KeyMask::window;
    return spans;
  }
  // As AttentionOps lists them, but for the span's number.
  void add_splits(const KvSpan& span, std::vector<AttentionSplit>& splits) const {
    const auto element = static_cast<std::int64_t>(element_bytes(span.type));
    const auto* k = static_cast<const std::byte*>(span.k);
    const auto* v = static_cast<const std::byte*>(span.v);
    for (std::int64_t first = 0; first < span.n_tokens; first += kSplitKeys) {
      AttentionSplit split;
      split.k = k + first * setup_.shape.head_dim * element;
      split.v = v + first * setup_.shape.head_dim * element;
      if (span.type == KvType::q8) {
        split.k_scales = static_cast<const std::uint16_t*>(span.k_scales);
        split.v_scales = static_cast<const std::uint16_t*>(span.v_scales) + first;
      }
      split.head_stride = span.head_stride;
      split.first_pos = span.first_pos + first;
      split.n_keys = static_cast<std::int32_t>(std::min<std::int64_t>(kSplitKeys, span.n_tokens - first));
      split.type = span.type;
      split.query = static_cast<std::uint8_t>(span.query);
      split.mask = static_cast<std::uint8_t>(span.mask);
      const bool unit = span.head_stride == setup_.block;
      split.arithmetic = unit ? args_.unit_arithmetic : args_.store_arithmetic;
      const std::uintptr_t starts = reinterpret_cast<std::uintptr_t>(k) | reinterpret_cast<std::uintptr_t>(v);
      split.aligned = starts % static_cast<std::uintptr_t>(8 * element) == 0 ? 1 : 0;
      splits.push_back(split);
    }
  }

  Rig& rig_;
  Setup setup_;
  SelectOps ops_;
  std::mt19937 random_;
  DecodeSelect args_;
  std::vector<const void*> segments_, slots_;
  std::vector<IndexSegment> runs_;
  std::size_t entry_bytes_ = 0, max_wanted_ = 0;
  Memory* scores_ = nullptr;
  bool touched_ = false;
};

DecodeState state_of(std::int64_t n_units, UnitChoice choice = UnitChoice::ranked) {
  DecodeState state;
  state.choice = choice;
  state.n_units = n_units;
  state.offset = 1000;
  state.n_initial = 129;
  state.prefix_first = 100;
  state.n_prefix = 257;
  state.window_first = 357;
  state.n_window = 644;
  return state;
}

}  // namespace

TEST_CASE("cuda: a decode step selects on the device what the operations select, and lists the same splits") {
  struct Case {
    Setup setup;
    std::vector<int> n_units;
  };
  const KvType f32 = KvType::f32, f16 = KvType::f16, q8 = KvType::q8;
  const MassHeads per_kv = MassHeads::per_kv_head, per_query = MassHeads::per_query_head;
  // shape, two_stage, types of index, units, window; n_vectors, heads, block, topk, n_candidates
  const Case cases[] = {
      {{{8, 2, 64}, true, f16, f16, f16, 2, per_kv, 64, 4, 16}, {0, 1, 4, 5, 15, 16, 17, 65, 300, 1500}},
      {{{8, 2, 64}, true, f32, q8, f32, 1, per_kv, 32, 3, 9}, {3, 4, 9, 10, 129}},
      {{{3, 3, 80}, true, f16, q8, f16, 2, per_kv, 130, 2, 7}, {2, 3, 7, 8, 128, 200}},
      {{{4, 4, 128}, true, f32, f32, f32, 3, per_kv, 65, 1, 4}, {1, 2, 4, 5, 70}},
      {{{32, 8, 128}, true, f16, f16, f16, 1, per_kv, 128, 2, 5}, {2, 5, 6, 140}},
      {{{96, 8, 64}, true, f16, f16, f16, 1, per_kv, 16, 5, 12}, {5, 6, 12, 13, 150}},  // tiles of 32 rows
      {{{130, 2, 8}, true, f32, f16, f16, 1, per_kv, 9, 3, 3}, {3, 4, 66, 300}},  // several tiles of rows; no votes
      {{{2, 1, 8}, true, f16, f16, f16, 1, per_kv, 1, 140, 300}, {140, 141, 300, 301, 400}},  // several statistics
      {{{8, 2, 64}, false, f16, f16, f16, 0, per_kv, 64, 4, 0}, {0, 1, 4, 5, 65, 300, 1500}},
      {{{8, 2, 64}, false, f32, q8, f32, 0, per_query, 300, 3, 0}, {3, 4, 33, 129}},
      {{{3, 3, 80}, false, f16, q8, f16, 0, per_kv, 128, 16, 0}, {1, 16, 17, 200}},
      {{{96, 8, 128}, false, f16, f32, f16, 0, per_query, 16, 5, 0}, {5, 6, 70}},
      {{{2, 1, 8}, false, f32, f16, f16, 0, per_kv, 1, 1100, 0}, {1100, 1101, 2100}},
  };
  unsigned seed = 1;
  for (const Case& c : cases) {
    INFO("seed " << seed);
    Rig rig;
    Setup setup = c.setup;
    setup.max_units = c.n_units.back();
    Agent agent(rig, setup, seed++);
    for (const int n : c.n_units) agent.check_equal(state_of(n));
  }
}

TEST_CASE("cuda: equal scores and NaN queries select on the device what the operations select") {
  for (const bool two_stage : {true, false}) {
    for (const Values values : {Values::normal, Values::small_integers, Values::zeros}) {
      INFO("two_stage " << two_stage << ", values " << static_cast<int>(values));
      Rig rig;
      Setup setup{{4, 2, 16}, two_stage};
      setup.block = 8;
      setup.n_slots = 3;  // candidates with equal keys
      setup.max_units = 300;
      setup.values = values;
      Agent agent(rig, setup, 7);
      if (values == Values::normal) agent.repeat_first_entry(140);
      if (values != Values::normal) agent.set_query(std::vector<float>(64, 1.0f));
      for (const int n : {17, 64, 130, 300}) agent.check_equal(state_of(n));
      std::vector<float> query(64, 1.0f);
      query[20] = kNan;  // one head
      agent.set_query(query);
      agent.check_equal(state_of(300));
      query.assign(64, kNan);
      agent.set_query(query);
      agent.check_equal(state_of(300));
      query.assign(64, 3e38f);  // infinite logits, and their differences
      agent.set_query(query);
      agent.check_equal(state_of(300));
    }
  }
}

TEST_CASE("cuda: more units than one block looks at are selected as by the operations") {
  for (const bool two_stage : {true, false}) {
    for (const int k : {5, 3000}) {  // with lists of the best of parts, and without
      if (two_stage && k == 3000) continue;
      INFO("two_stage " << two_stage << ", k " << k);
      Rig rig;
      Setup setup{{1, 1, 8}, two_stage};
      setup.n_vectors = 1;
      setup.block = 1;
      setup.topk = two_stage ? 2 : k;
      setup.n_candidates = two_stage ? k : 0;
      setup.max_units = 66000;
      setup.values = Values::small_integers;
      Agent agent(rig, setup, 11);
      const DecodeState state = state_of(65999);
      const Agent::Result want = agent.expect(state), got = agent.select(state);
      CHECK(got.wanted == want.wanted);
      CHECK(same_bits(got.splits, want.splits));
      if (k == 5) agent.check_equal(state_of(1000));
    }
  }
}

TEST_CASE("cuda: a decode step that attends all units or none lists them without scores") {
  for (const bool two_stage : {true, false}) {
    Rig rig;
    Setup setup{{4, 2, 16}, two_stage};
    setup.max_units = 100;
    setup.n_candidates = two_stage ? 16 : 0;
    Agent agent(rig, setup, 3);
    agent.set_query(std::vector<float>(64, kNan));
    for (const int n : {0, 1, 3, 4}) agent.check_equal(state_of(n, UnitChoice::all));
    if (two_stage) agent.check_equal(state_of(16, UnitChoice::all));  // more than topk
    for (const int n : {0, 1, 100}) {
      agent.check_equal(state_of(n, UnitChoice::none));
      DecodeState state = state_of(n, UnitChoice::none);
      state.n_initial = state.n_prefix = 0;
      state.n_window = 1;
      agent.check_equal(state);
    }
  }
}

TEST_CASE("cuda: a unit that is wanted and not resident stops the decode step at its layer, with its splits unset") {
  for (const bool two_stage : {true, false}) {
    for (const auto& [n_units, choice] : {std::pair(300, UnitChoice::ranked), std::pair(10, UnitChoice::ranked),
                                          std::pair(3, UnitChoice::ranked), std::pair(4, UnitChoice::all)}) {
      INFO("two_stage " << two_stage << ", units " << n_units);
      Rig rig;
      Setup setup{{4, 2, 16}, two_stage};
      setup.max_units = 300;
      setup.n_candidates = two_stage ? 16 : 0;
      Agent agent(rig, setup, 5);
      const DecodeState state = state_of(n_units, choice);
      const std::vector<std::int32_t> wanted = agent.expect(state).wanted;
      REQUIRE(!wanted.empty());
      // Units that nobody wants need not be there.
      std::int32_t other = 0;
      while (std::find(wanted.begin(), wanted.end(), other) != wanted.end()) ++other;
      agent.set_slot(other, nullptr);
      agent.check_equal(state);
      CHECK(agent.select(state).missing_layer == -1);
      agent.set_slot(wanted.back(), nullptr);
      agent.check_equal(state);
      const Agent::Result got = agent.select(state);
      CHECK(got.missing_layer == kLayer);
      CHECK(got.wanted == wanted);
    }
  }
}

TEST_CASE("cuda: selection of a layer that is done, or that follows a miss, writes nothing") {
  for (const bool two_stage : {true, false}) {
    Rig rig;
    Setup setup{{4, 2, 16}, two_stage};
    setup.max_units = 100;
    Agent agent(rig, setup, 5);
    for (const UnitChoice choice : {UnitChoice::ranked, UnitChoice::all, UnitChoice::none}) {
      DecodeState done = state_of(choice == UnitChoice::ranked ? 100 : 4, choice);
      done.first_layer = kLayer + 1;
      CHECK_FALSE(agent.select(done).lists);
      CHECK_FALSE(agent.touched());
      DecodeState missed = state_of(choice == UnitChoice::ranked ? 100 : 4, choice);
      missed.missing_layer = 0;
      const Agent::Result got = agent.select(missed);
      CHECK_FALSE(got.lists);
      CHECK_FALSE(agent.touched());
      CHECK(got.missing_layer == 0);
    }
    DecodeState first = state_of(100);
    first.first_layer = kLayer;
    for (const LayerPart part : {LayerPart::heads, LayerPart::rest}) {
      first.first_part = part;
      agent.check_equal(first);
    }
  }
}

TEST_CASE("cuda: selection of a decode step refuses what it cannot do") {
  DecodeSelect args;
  args.n_heads = args.n_kv_heads = 1;
  args.head_dim = 8;
  args.n_vectors = args.block = args.topk = 1;
  args.n_candidates = 40000;
  CHECK(launch_decode_select(args, nullptr) == cudaErrorInvalidValue);
  args.n_candidates = 1;
  args.index_type = KvType::q8;
  CHECK(launch_decode_select(args, nullptr) == cudaErrorInvalidValue);
  args.index_type = KvType::f16;
  args.n_candidates = 0;
  CHECK(launch_decode_select(args, nullptr) == cudaErrorInvalidValue);
}

}  // namespace mneme::gpu::cuda
