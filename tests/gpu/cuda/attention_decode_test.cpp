// Attention of one token in one kernel: the bits of the split family and of the keys' masses, launch after launch.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>

#include "gpu/cuda/attention_kernels.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu::cuda {
namespace {

using mneme::test::random_floats;
using mneme::test::StoredKv;
using test::Memory;
using test::Rig;

constexpr std::int64_t kWindowFirst = 7;  // place of the window's first token
constexpr std::int64_t kPlaces = 9;       // of the buffers, behind the window
const float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr std::int32_t kLayer = 3;

enum class Masses { none, per_kv_head, per_query_head };

enum class Way {
  whole,     // in one launch
  staged,    // what is not units' first
  given_up,  // the same, but then the step is made again in one launch
};

// Keys of each kind; all of them are seen but for the window's beyond n_local.
struct Case {
  HeadShape shape;
  KvType store, units;
  int n_initial, n_units, unit_tokens, n_prefix, n_window, n_local;
  Masses masses;
  int slack = 0;  // splits that there could be and are not
};

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

struct Results {
  std::vector<float> out, lse, mass, saved;
  std::vector<unsigned> tickets;
};

// A token and what it sees, on the device.
class Step {
 public:
  Step(Rig& rig, const Case& c, unsigned seed) : rig_(rig), case_(c), random_(seed) {
    state_.offset = kWindowFirst + c.n_window - 1;
    state_.window_first = kWindowFirst;
    state_.n_window = c.n_window;
    add(c.store, c.n_initial, KeyMask::all, QueryKind::global, -100000);
    units_.first = static_cast<std::int32_t>(splits_.size());
    for (int u = 0; u < c.n_units; ++u) add(c.units, c.unit_tokens, KeyMask::all, QueryKind::global, -50000 + 1000 * u);
    units_.end = static_cast<std::int32_t>(splits_.size());
    add(c.store, c.n_prefix, KeyMask::all, QueryKind::global, -c.n_local - c.n_prefix + 1);
    add(c.store, c.n_window, KeyMask::window, QueryKind::local, 1 - c.n_window);
    describe();
    before_ = random_floats(random_, at(n_places() * mass_stride()), 1.0f);
    for (float& r : before_) r = std::fabs(r);
  }

  // By the separate kernels; what the masses start from is the caller's matter there.
  Results want() {
    Results want;
    const Memory &out = poison(out_size()), &lse = poison(at(case_.shape.n_heads));
    AttentionProblem problem = problem_;
    problem.out = out.f32(), problem.lse = lse.f32();
    check(attention_by_split(problem, parts_, kShared, rig_.stream()), "attention by splits");
    want.mass = before_;
    want.saved.assign(before_.size(), kNan);
    if (case_.masses != Masses::none) {
      for (std::int64_t i = 0; i < mass_stride(); ++i) want.mass[at(state_.offset * mass_stride() + i)] = 0.0f;
      const auto first = at(kWindowFirst * mass_stride()), n = at(case_.n_window * mass_stride());
      std::copy_n(want.mass.begin() + kWindowFirst * mass_stride(), n,
                  want.saved.begin() + kWindowFirst * mass_stride());
      const Memory& mass = rig_.upload(want.mass);
      const int n_last = (case_.n_window + kSplitKeys - 1) / kSplitKeys;
      check(attention_key_mass(problem, n_last, columns(), mass.f32() + first, rig_.stream()), "the keys' masses");
      want.mass = mass.download<float>(want.mass.size());
    }
    want.out = out.download<float>(out_size());
    want.lse = lse.download<float>(at(case_.shape.n_heads));
    want.tickets.assign(at(case_.shape.n_kv_heads), 0);
    return want;
  }

  // `launches` times the same step, with `saved` back in `mass` between them.
  Results decode(int launches, Way way = Way::whole, DecodeGuard guard = {}) {
    const Memory &out = poison(out_size()), &lse = poison(at(case_.shape.n_heads));
    Memory &mass = rig_.upload(before_), &saved = poison(before_.size());
    for (std::int64_t i = 0; i < mass_stride(); ++i)  // nobody has written the token's own yet
      mass.upload(&kNan, sizeof kNan, at(state_.offset * mass_stride() + i) * sizeof kNan);
    const std::size_t n_mass = before_.size(), n_tickets = at(case_.shape.n_kv_heads);
    const Memory& tickets = rig_.upload(std::vector<unsigned>(n_tickets, 0));
    AttentionProblem problem = problem_;
    problem.out = out.f32(), problem.lse = lse.f32();
    if (guard.state != nullptr) problem.guard = guard;
    const auto* units = reinterpret_cast<const UnitSplits*>(rig_.upload(std::vector<UnitSplits>(1, units_)).data());
    auto* const tickets_at = static_cast<unsigned*>(tickets.data());
    const auto attend = [&](DecodeStage stage, const DecodeMass& masses) {
      check(attention_decode(problem, parts_, masses, units, stage, tickets_at, kShared, rig_.stream()),
            "attention of a token");
    };
    DecodeMass masses;
    if (case_.masses != Masses::none) {
      masses = {mass.f32(), saved.f32(), poison(at(case_.n_window + kSplitKeys) * at(case_.shape.n_heads)).f32(),
                columns()};
    }
    for (int i = 0; i < launches; ++i) {
      if (i > 0 && case_.masses != Masses::none) {
        const std::size_t first = at(kWindowFirst * mass_stride()), n = at(case_.n_window * mass_stride());
        const std::vector<float> back = saved.download<float>(n, first * sizeof(float));
        mass.upload(back.data(), n * sizeof(float), first * sizeof(float));
      }
      if (way != Way::whole) {
        problem.guard = {upload_state(0, LayerPart::heads, kLayer), kLayer, LayerPart::rest};
        const std::vector<float> out_before = out.download<float>(out_size()),
                                 mass_before = mass.download<float>(n_mass);
        attend(DecodeStage::local, masses);
        if (case_.n_units > 0) {
          CHECK(test::same_bits(out.download<float>(out_size()), out_before));
          CHECK(test::same_bits(mass.download<float>(n_mass), mass_before));
        }
        problem.guard.state = upload_state(kLayer, way == Way::staged ? LayerPart::rest : LayerPart::heads, -1);
        if (way == Way::given_up)
          check(cudaMemsetAsync(tickets_at, 0, n_tickets * sizeof(unsigned), rig_.stream()), "clearing");
      }
      attend(DecodeStage::rest, masses);
    }
    return {out.download<float>(out_size()), lse.download<float>(at(case_.shape.n_heads)),
            mass.download<float>(before_.size()), saved.download<float>(before_.size()),
            tickets.download<unsigned>(at(case_.shape.n_kv_heads))};
  }

  DecodeState state() const { return state_; }
  const DecodeState* upload_state(std::int32_t first_layer, LayerPart first_part, std::int32_t missing_layer) {
    DecodeState state = state_;
    state.first_layer = first_layer;
    state.first_part = first_part;
    state.missing_layer = missing_layer;
    return static_cast<const DecodeState*>(rig_.upload(std::vector<DecodeState>(1, state)).data());
  }

 private:
  static constexpr std::size_t kShared = 227 * 1024;

  std::int64_t n_places() const { return kWindowFirst + case_.n_window + kPlaces; }
  int columns() const { return case_.masses == Masses::per_query_head ? problem_.group : 1; }
  std::int64_t mass_stride() const { return std::int64_t{case_.shape.n_kv_heads} * columns(); }
  std::size_t out_size() const { return at(case_.shape.n_heads) * at(case_.shape.head_dim); }
  Memory& poison(std::size_t n) { return rig_.upload(std::vector<float>(n, kNan)); }

  // A span's splits, as AttentionOps lists them.
  void add(KvType type, int n_tokens, KeyMask mask, QueryKind query, std::int64_t first_pos) {
    if (n_tokens == 0) return;
    const StoredKv stored(case_.shape, type, n_tokens, random_);
    const KvSpan span = rig_.upload(case_.shape, stored.span(mask, query, first_pos));
    const std::int64_t d = case_.shape.head_dim;
    for (std::int64_t first = 0; first < n_tokens; first += kSplitKeys) {
      AttentionSplit split;
      const std::int64_t skip = first * d * static_cast<std::int64_t>(element_bytes(type));
      split.k = static_cast<const std::byte*>(span.k) + skip;
      split.v = static_cast<const std::byte*>(span.v) + skip;
      if (type == KvType::q8) {
        split.k_scales = static_cast<const std::uint16_t*>(span.k_scales);
        split.v_scales = static_cast<const std::uint16_t*>(span.v_scales) + first;
      }
      split.head_stride = span.head_stride;
      split.first_pos = first_pos + first;
      split.n_keys = static_cast<std::int32_t>(std::min<std::int64_t>(kSplitKeys, n_tokens - first));
      split.type = type;
      split.query = static_cast<std::uint8_t>(query);
      split.mask = static_cast<std::uint8_t>(mask);
      split.arithmetic = type != KvType::f32 && d % 16 == 0 ? Arithmetic::matrix : Arithmetic::plain;
      split.aligned = 1;
      splits_.push_back(split);
    }
  }

  void describe() {
    const auto n_splits = static_cast<std::int32_t>(splits_.size());
    AttentionProblem& p = problem_;
    p.max_splits = n_splits + case_.slack;
    std::vector<std::byte> list(at(p.max_splits) * sizeof(AttentionSplit), std::byte{0xFF});
    if (n_splits > 0) std::memcpy(list.data(), splits_.data(), splits_.size() * sizeof(AttentionSplit));
    p.splits = reinterpret_cast<const AttentionSplit*>(rig_.upload(list).data());
    p.n_splits = static_cast<const std::int32_t*>(rig_.upload(std::vector<std::int32_t>(1, n_splits)).data());
    for (const float*& query : p.queries) query = rig_.upload(random_floats(random_, out_size(), 1.0f)).f32();
    p.n_local = case_.n_local;
    p.n_queries = 1;
    p.n_kv_heads = case_.shape.n_kv_heads;
    p.group = case_.shape.n_heads / case_.shape.n_kv_heads;
    p.head_dim = case_.shape.head_dim;
    p.scale = 1.4426950f / std::sqrt(static_cast<float>(p.head_dim));
    p.n_pieces = 1;
    for (const AttentionSplit& split : splits_)
      p.n_pieces = std::max(p.n_pieces, attention_pieces(split.arithmetic, p.head_dim));
    const auto rows = at(p.max_splits) * at(case_.shape.n_heads);
    parts_.stats = reinterpret_cast<RowStat*>(poison(2 * rows).data());
    parts_.out = poison(rows * at(p.head_dim)).f32();
    p.guard.state = static_cast<const DecodeState*>(rig_.upload(std::vector<DecodeState>(1, state_)).data());
  }

  Rig& rig_;
  Case case_;
  std::mt19937 random_;
  DecodeState state_;
  std::vector<AttentionSplit> splits_;
  UnitSplits units_;
  AttentionProblem problem_;
  AttentionParts parts_;
  std::vector<float> before_;  // the masses
};

void check_same(const Results& got, const Results& want) {
  CHECK(test::same_bits(got.out, want.out));
  CHECK(test::same_bits(got.lse, want.lse));
  CHECK(test::same_bits(got.saved, want.saved));
  CHECK(got.tickets == want.tickets);
}

constexpr Case kCases[] = {
    {{3, 3, 64}, KvType::f16, KvType::f16, 4, 2, 64, 9, 150, 150, Masses::per_kv_head},
    {{6, 2, 64}, KvType::f16, KvType::q8, 5, 9, 32, 0, 300, 300, Masses::per_kv_head, 7},
    {{6, 2, 128}, KvType::f16, KvType::f16, 0, 0, 0, 0, 1, 20, Masses::per_query_head},
    {{14, 2, 64}, KvType::f16, KvType::f16, 4, 3, 16, 20, 129, 100, Masses::per_query_head, 1},
    {{7, 1, 80}, KvType::f32, KvType::q8, 1, 1, 130, 0, 257, 40, Masses::per_kv_head},
    {{20, 1, 64}, KvType::f16, KvType::q8, 4, 2, 32, 3, 140, 140, Masses::per_kv_head, 3},
    {{40, 2, 16}, KvType::f16, KvType::f16, 2, 1, 16, 0, 70, 70, Masses::per_query_head},
    {{2, 1, 24}, KvType::f32, KvType::f32, 3, 12, 8, 5, 60, 60, Masses::none, 40},
    {{2, 1, 256}, KvType::f16, KvType::q8, 3, 1, 8, 0, 30, 30, Masses::none},
};
// No initial tokens and no prefix before and behind the units; units of two splits; no units; nothing but units.
constexpr Case kStagedCases[] = {
    {{3, 3, 64}, KvType::f16, KvType::f16, 4, 2, 64, 9, 150, 150, Masses::per_kv_head},
    {{20, 1, 64}, KvType::f16, KvType::q8, 4, 2, 32, 3, 140, 140, Masses::per_kv_head, 3},
    {{14, 2, 64}, KvType::f16, KvType::f16, 0, 3, 16, 0, 129, 100, Masses::per_query_head, 1},
    {{7, 1, 80}, KvType::f32, KvType::q8, 1, 2, 130, 0, 257, 40, Masses::per_kv_head},
    {{6, 2, 16}, KvType::f16, KvType::f16, 5, 0, 0, 3, 20, 20, Masses::per_kv_head, 2},
    {{4, 2, 16}, KvType::f16, KvType::f16, 0, 2, 8, 0, 0, 10, Masses::none, 1},
};

}  // namespace

TEST_CASE("a token's attention in one kernel has the bits of the split family and of the keys' masses") {
  Rig rig;
  unsigned seed = 1;
  for (const Case& c : kCases) {
    Step step(rig, c, seed);
    const Results want = step.want();
    for (const int launches : {1, 2}) {
      INFO("seed " << seed << ", H " << c.shape.n_heads << ", d " << c.shape.head_dim << ", launches " << launches);
      const Results got = step.decode(launches);
      check_same(got, want);
      if (c.masses != Masses::none) CHECK(test::same_bits(got.mass, want.mass));
    }
    ++seed;
    rig.clear();
  }
}

TEST_CASE("a token's attention in two stages has the bits of one launch, and may be given up between them") {
  Rig rig;
  unsigned seed = 1;
  for (const Case& c : kStagedCases) {
    for (const Way way : {Way::staged, Way::given_up}) {
      if (way == Way::given_up && c.n_units == 0) continue;  // the first stage ends the step
      INFO("seed " << seed << ", H " << c.shape.n_heads << ", d " << c.shape.head_dim << ", way "
                   << static_cast<int>(way));
      Step step(rig, c, seed);
      const Results want = step.decode(1), got = step.decode(2, way);
      check_same(got, want);
      CHECK(test::same_bits(got.mass, want.mass));
      rig.clear();
    }
    ++seed;
  }
}

TEST_CASE("a token that sees nothing gets zeros from the one kernel, however many splits there could be") {
  Rig rig;
  for (const int slack : {0, 3}) {
    for (const int group : {3, 20}) {
      const Case c{{2 * group, 2, 16}, KvType::f16, KvType::f16, 0, 0, 0, 0, 0, 10, Masses::none, slack};
      Step step(rig, c, 9);
      const Results got = step.decode(2);
      INFO("slack " << slack << ", group " << group);
      check_same(got, step.want());
      CHECK(got.out == std::vector<float>(got.out.size(), 0.0f));
    }
  }
}

TEST_CASE("the one kernel writes nothing when its layer is done or a unit is missing") {
  struct GuardCase {
    std::int32_t first_layer;
    LayerPart first_part;
    std::int32_t missing_layer;
    bool runs;
  };
  Rig rig;
  Step step(rig, kCases[0], 5);
  const Results want = step.want();
  for (const GuardCase& guard : {GuardCase{4, LayerPart::heads, -1, false},
                                 {kLayer, LayerPart::heads, -1, true},
                                 {2, LayerPart::rest, -1, true},  // of another layer a stage is done
                                 {0, LayerPart::heads, 2, false}}) {
    const DecodeState* there = step.upload_state(guard.first_layer, guard.first_part, guard.missing_layer);
    const Results got = step.decode(1, Way::whole, {there, kLayer, LayerPart::rest});
    INFO("first layer " << guard.first_layer << ", missing layer " << guard.missing_layer);
    if (guard.runs) {
      check_same(got, want);
    } else {
      for (const std::vector<float>* untouched : {&got.out, &got.lse, &got.saved})
        CHECK(test::same_bits(*untouched, std::vector<float>(untouched->size(), kNan)));
    }
  }
}

TEST_CASE("what the one kernel cannot do is refused") {
  Rig rig;
  AttentionProblem good;
  good.n_queries = 1, good.n_kv_heads = 2, good.group = 3, good.head_dim = 64, good.n_pieces = 1;
  unsigned tickets = 0;  // never read
  const UnitSplits units;
  RowStat stat{};
  float x = 0;
  DecodeState state;
  std::vector<AttentionProblem> refused(4, good);
  refused[0].n_queries = 2;
  refused[1].first_query_pos = 1;
  refused[2].span_stats = &stat;
  refused[3].head_dim = 20;
  const auto decode = [&](const AttentionProblem& p, const DecodeMass& mass, std::size_t shared) {
    return attention_decode(p, {}, mass, &units, DecodeStage::rest, &tickets, shared, rig.stream());
  };
  for (const AttentionProblem& p : refused) CHECK(decode(p, {}, 200000) == cudaErrorInvalidValue);
  CHECK(decode(good, {}, 1000) == cudaErrorInvalidValue);
  CHECK(decode(good, {&x, &x, &x, 1}, 200000) == cudaErrorInvalidValue);  // no state
  good.guard.state = &state;
  CHECK(decode(good, {&x, &x, &x, 2}, 200000) == cudaErrorInvalidValue);
  CHECK(decode(good, {&x, nullptr, &x, 1}, 200000) == cudaErrorInvalidValue);
  CHECK(attention_decode(good, {}, {}, nullptr, DecodeStage::rest, &tickets, 200000, rig.stream()) ==
        cudaErrorInvalidValue);
}

}  // namespace mneme::gpu::cuda
