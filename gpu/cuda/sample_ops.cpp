#include "gpu/cuda/sample_ops.hpp"

#include <algorithm>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <new>

#include "gpu/cuda/select_kernels.hpp"

namespace mneme::gpu::cuda {
namespace {

// Philox4x32-10 (Salmon et al. 2011) of (position, seed): the first 53 bits as a number in [0, 1).
double random_number(std::uint64_t seed, std::uint64_t position) {
  std::uint32_t c[4] = {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), 0, 0};
  auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c[0], b = std::uint64_t{0xCD9E8D57u} * c[2];
    c[0] = static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ low;
    c[1] = static_cast<std::uint32_t>(b);
    c[2] = static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ high;
    c[3] = static_cast<std::uint32_t>(a);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return static_cast<double>((std::uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

}  // namespace

// edits_: one entry per token that has a bias or a penalty.
void SampleOps::collect_edits(int n_vocab, const SampleArgs& args) {
  edits_.clear();
  for (const auto& [id, bias] : args.logit_bias) edits_.push_back({id, bias, 0});
  if (args.repetition_penalty != 1.0f || args.presence_penalty != 0.0f) {
    for (const std::int32_t id : args.recent) edits_.push_back({id, 0.0f, 1});
  }
  // A token's biases stay in their order, penalties come after them.
  std::stable_sort(edits_.begin(), edits_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  std::size_t n = 0;
  for (const LogitEdit& edit : edits_) {
    MNEME_CHECK(edit.id >= 0 && edit.id < n_vocab);
    if (n == 0 || edits_[n - 1].id != edit.id) {
      edits_[n++] = edit;
    } else if (edit.penalised != 0) {
      edits_[n - 1].penalised = 1;
    } else {
      edits_[n - 1].bias = edit.bias;
    }
  }
  edits_.resize(n);
}

SampleOps::~SampleOps() {
  cudaFreeHost(result_);
}

bool SampleOps::takes(int n_vocab, const SampleArgs& args) noexcept {
  return args.temperature == 0 || args.top_k <= kMostSorted || args.top_k >= n_vocab;
}

bool SampleOps::begin(const float* logits, int n_vocab, const SampleArgs& args) {
  if (!takes(n_vocab, args)) return false;
  if (result_ == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(SampleResult), cudaHostAllocMapped | cudaHostAllocPortable),
          "allocating pinned memory for a token");
    result_ = new (memory) SampleResult;
  }
  *result_ = {};
  enqueue(logits, n_vocab, args, result_);
  return true;
}

std::optional<SampledToken> SampleOps::end(bool has_waited) {
  MNEME_CHECK(result_ != nullptr);
  if (!has_waited) wait_for_stream(resources_, "sampling");
  const SampleResult result = *result_;
  switch (result.status) {
    case SampleStatus::chosen:
      return SampledToken{SampledToken::Outcome::chosen, result.id, result.logprob};
    case SampleStatus::no_logit:
      return SampledToken{SampledToken::Outcome::no_logit, 0, 0};
    case SampleStatus::none_left:
      return SampledToken{SampledToken::Outcome::none_left, 0, 0};
    case SampleStatus::declined:
      return std::nullopt;
    case SampleStatus::pending:
      break;
  }
  throw Error(errc::engine_faulted, "sampling: the device has written no token");
}

void SampleOps::enqueue(const float* logits, int n_vocab, const SampleArgs& args, SampleResult* pinned_result) {
  MNEME_CHECK(n_vocab > 0 && args.temperature >= 0 && args.top_k >= 0 && takes(n_vocab, args));
  collect_edits(n_vocab, args);
  SamplePlan plan;
  plan.logits = logits;
  plan.n_vocab = n_vocab;
  plan.n_edits = static_cast<int>(edits_.size());
  plan.repetition_penalty = args.repetition_penalty;
  plan.presence_penalty = args.presence_penalty;
  plan.temperature = args.temperature;
  plan.top_p = args.top_p;
  plan.min_p = args.min_p;
  plan.top_k = args.top_k < n_vocab && args.temperature > 0 ? args.top_k : 0;
  plan.random = random_number(args.seed, args.position);
  void* result = nullptr;
  check(cudaHostGetDevicePointer(&result, pinned_result, 0), "mapping the result of sampling");
  plan.result = static_cast<SampleResult*>(result);

  const auto tiles = static_cast<std::size_t>(plan.n_tiles()), k = static_cast<std::size_t>(plan.top_k);
  const auto candidates = static_cast<std::size_t>(k == 0 ? 0 : top_k_candidates(n_vocab, plan.top_k));
  ScratchPlan room;
  const std::size_t adjusted_at = room.add<float>(tiles * kSampleTile),
                    weights_at = room.add<float>(tiles * kSampleTile);
  const std::size_t peaks_at = room.add<TilePeak>(tiles);
  const std::size_t raw_at = room.add<double>(tiles * 8), sums_at = room.add<double>(tiles * 8);
  const std::size_t edits_at = room.add<LogitEdit>(edits_.size()), ids_at = room.add<std::int32_t>(k);
  const std::size_t scores_at = room.add<float>(candidates), names_at = room.add<std::int32_t>(candidates);
  std::byte* base = resources_.scratch->require(room.bytes());
  const auto place = [base]<class T>(std::size_t at, T*& pointer) { pointer = reinterpret_cast<T*>(base + at); };
  place(adjusted_at, plan.adjusted);
  place(weights_at, plan.weights);
  place(peaks_at, plan.peaks);
  place(raw_at, plan.raw_sums);
  place(sums_at, plan.weight_sums);
  LogitEdit* edits = nullptr;
  std::int32_t *ids = nullptr, *candidate_ids = nullptr;
  float* candidate_scores = nullptr;
  place(edits_at, edits);
  place(ids_at, ids);
  place(scores_at, candidate_scores);
  place(names_at, candidate_ids);
  plan.edits = edits;
  plan.best_ids = ids;

  const cudaStream_t stream = resources_.stream;
  resources_.arguments->upload(edits, std::span<const LogitEdit>(edits_));
  check(launch_adjust(plan, stream), "adjusting logits");
  check(launch_weigh(plan, stream), "weighing tokens");
  if (k > 0) {
    check(launch_top_k(plan.adjusted, n_vocab, plan.top_k, candidate_scores, candidate_ids, ids, stream),
          "selecting the best tokens");
  }
  check(launch_draw(plan, stream), "drawing a token");
}

}  // namespace mneme::gpu::cuda
