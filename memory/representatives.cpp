// InfLLM as published (specs/infllm.md 2.6-2.8): a unit is represented by the mean raw key of the R tokens that
// received the most attention while they were in the window; the chunk's mean global query ranks the units.
#include <chrono>

#include "memory/selector.hpp"

namespace mneme::memory {
namespace {

class Representatives final : public Selector {
 public:
  explicit Representatives(const SelectorParts& parts) : parts_(parts), scores_(*parts.device) {}

  void seal(const gpu::KvSpan& keys, const float* mass, void* entry) override {
    const Params& params = *parts_.params;
    parts_.device->representatives(parts_.heads, keys, mass, params.rep_mode, static_cast<int>(params.repr_topk),
                                   params.index_type, entry);
  }

  void select(const ChunkQueries& queries, Window& window, Details details, Selection& selection) override {
    const Params& params = *parts_.params;
    const auto start = std::chrono::steady_clock::now();
    float* scores = scores_.reserve(queries.n_units);
    Index::Scan scan = parts_.index->scan(queries.layer, queries.n_units);
    for (auto run = scan.next(); !run.empty(); run = scan.next()) {
      parts_.device->score_representatives(parts_.heads, queries.q_global, static_cast<int>(queries.n), run,
                                           params.rep_mode, scores + scan.first_unit());
    }
    const std::vector<std::int32_t> best =
        parts_.device->top_k(scores, static_cast<int>(queries.n_units), static_cast<int>(params.topk));
    scan_time_ += std::chrono::steady_clock::now() - start;
    selection.units.assign(best.begin(), best.end());
    parts_.residency->ensure(queries.layer, selection.units, window);
    if (details == Details::none) return;
    selection.stage1 = scores_.download(queries.n_units);
    for (const std::int32_t unit : best)
      selection.unit_scores.push_back(selection.stage1[static_cast<std::size_t>(unit)]);
  }

  std::int64_t n_candidates() const noexcept override { return parts_.params->topk; }

 private:
  SelectorParts parts_;
  FloatBuffer scores_;
};

}  // namespace

std::unique_ptr<Selector> make_representatives(const SelectorParts& parts) {
  return std::make_unique<Representatives>(parts);
}

void Selection::clear() {
  units.clear();
  unit_scores.clear();
  candidates.clear();
  voters.clear();
  stage1.clear();
  stage2.clear();
}

float* FloatBuffer::reserve(std::int64_t n) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  if (buffer_.bytes() < bytes) buffer_ = device_->allocate(std::max<std::size_t>(2 * bytes, 1024));
  return buffer_.f32();
}

std::vector<float> FloatBuffer::download(std::int64_t n) const {
  std::vector<float> values(static_cast<std::size_t>(n));
  device_->download(values.data(), buffer_.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace mneme::memory
