// The state at P as rows, and back (specs/durability.md 2.4, 4.1).
#include <algorithm>
#include <cstring>

#include "gpu/quant_blocks.hpp"
#include "memory/context_impl.hpp"
#include "mneme/base/check.hpp"
#include "mneme/error.hpp"

namespace mneme::memory {
namespace {

[[noreturn]] void corrupt(const std::string& what) {
  throw Error(errc::store_corrupt, what);
}

// Stored elements as f32. from: [n_kv_heads][n][head_dim] of `type`; to: [n][n_kv_heads][head_dim].
void widen(gpu::KvType type, const std::byte* from, std::size_t kv_heads, std::size_t n, std::size_t dim, float* to) {
  for (std::size_t g = 0; g < kv_heads; ++g) {
    for (std::size_t i = 0; i < n; ++i) {
      const std::byte* source = from + (g * n + i) * dim * gpu::element_bytes(type);
      float* target = to + (i * kv_heads + g) * dim;
      if (type == gpu::KvType::f32) {
        std::memcpy(target, source, dim * sizeof(float));
        continue;
      }
      for (std::size_t j = 0; j < dim; ++j) {
        std::uint16_t half = 0;
        std::memcpy(&half, source + j * sizeof(half), sizeof(half));
        target[j] = gpu::f16_to_f32(half);
      }
    }
  }
}

}  // namespace

// Puts verified rows back into the windows of a fresh context, in ascending order of tokens.
class Context::Restorer {
 public:
  Restorer(Impl& impl, const Checkpoint& checkpoint)
      : s_(impl), checkpoint_(checkpoint), position_(checkpoint.position) {
    const std::int64_t longest = std::max({s_.params.block, s_.params.n_init, s_.format.slice_tokens()});
    const auto tokens = static_cast<std::size_t>(longest);
    const auto row =
        static_cast<std::size_t>(s_.model.heads.n_kv_heads) * static_cast<std::size_t>(s_.model.heads.head_dim);
    const auto half = static_cast<std::size_t>(s_.angles.half_dim());
    k_ = s_.device.allocate(tokens * row * sizeof(float));
    v_ = s_.device.allocate(tokens * row * sizeof(float));
    cos_ = s_.device.allocate(tokens * half * sizeof(float));
    sin_ = s_.device.allocate(tokens * half * sizeof(float));
    host_k_.resize(tokens * row);
    host_v_.resize(tokens * row);
    host_cos_.resize(tokens * half);
    host_sin_.resize(tokens * half);
  }

  void run() {
    const std::int64_t first = s_.layout.remainder_first(position_);
    for (Window& window : s_.windows) window.make_room(first, first, position_);
    next_ = 0;
    read_initial();
    if (position_ >= s_.params.n_init) read_blocks();
    for (const ImagePtr& slice : checkpoint_.slices) place_slice(slice);
    if (next_ != position_) {
      corrupt("checkpoint at " + std::to_string(position_) + ": its slices end at " + std::to_string(next_));
    }
    place_accumulators();
  }

 private:
  std::vector<ImagePtr> read(RowKind kind, std::int64_t ordinal) {
    std::vector<RowKey> keys;
    for (int layer = 0; layer < s_.model.n_layers; ++layer)
      keys.push_back({kind, static_cast<std::uint64_t>(ordinal), layer});
    std::vector<ImagePtr> images = s_.store.begin_read(std::move(keys))->wait();
    MNEME_CHECK(images.size() == s_.windows.size());
    return images;
  }

  void read_initial() {
    if (s_.params.n_init == 0 || position_ < s_.params.n_init) return;
    const std::vector<ImagePtr> rows = read(RowKind::initial, 0);
    start(s_.params.n_init);
    for (int layer = 0; layer < s_.model.n_layers; ++layer) {
      const Image& row = *rows[static_cast<std::size_t>(layer)];
      check_row(row, s_.format.initial(layer), "initial tokens layer " + std::to_string(layer));
      place(layer, payload(row).data());
    }
    next_ += n_;
  }

  // The blocks whose rows were put but which are not sealed stand in the window.
  void read_blocks() {
    next_ = std::max(next_, s_.layout.unit_first(s_.layout.units(position_)));
    for (std::int64_t block = s_.layout.units(position_); block < s_.format.blocks_put(position_); ++block) {
      const std::vector<ImagePtr> rows = read(RowKind::unit, block);
      start(s_.params.block);
      for (int layer = 0; layer < s_.model.n_layers; ++layer) {
        const Image& row = *rows[static_cast<std::size_t>(layer)];
        check_row(row, s_.format.unit(block, layer), unit_name(block, layer));
        place(layer, payload(row).data());
      }
      next_ += n_;
    }
  }

  void place_slice(const ImagePtr& slice) {
    const std::string what = "slice at " + std::to_string(next_);
    if (slice == nullptr) corrupt(what + " is missing");
    const ImageHeader header = verify_image(*slice, what);
    const std::int64_t n = header.n_tokens;
    if (n < 1 || n > s_.format.slice_tokens() || n > position_ - next_)
      corrupt(what + " has " + std::to_string(n) + " tokens");
    expect_image(header, s_.format.slice(next_, n), what);
    start(n);
    const std::size_t layer_bytes = header.payload_bytes / s_.windows.size();
    for (int layer = 0; layer < s_.model.n_layers; ++layer)
      place(layer, payload(*slice).data() + static_cast<std::size_t>(layer) * layer_bytes);
    next_ += n;
  }

  // Tokens [next_, next_ + n) come now: their angles serve every layer.
  void start(std::int64_t n) {
    n_ = n;
    const std::size_t bytes = static_cast<std::size_t>(n * s_.angles.half_dim()) * sizeof(float);
    s_.angles.fill(next_, n, s_.model.attention_factor, host_cos_.data(), host_sin_.data());
    s_.device.upload(cos_.data(), host_cos_.data(), bytes);
    s_.device.upload(sin_.data(), host_sin_.data(), bytes);
  }

  // row: [n_kv_heads][n][head_dim] K, then V, of store_type. The initial tokens keep the bits as they are; the
  // remainder goes the way of new tokens, because rounding a rounded value changes nothing and its rotated keys must
  // be made again.
  void place(int layer, const std::byte* row) {
    Window& window = s_.windows[static_cast<std::size_t>(layer)];
    const gpu::HeadShape& heads = s_.model.heads;
    const auto kv_heads = static_cast<std::size_t>(heads.n_kv_heads);
    const auto dim = static_cast<std::size_t>(heads.head_dim);
    const auto n = static_cast<std::size_t>(n_);
    const std::size_t half = kv_heads * n * dim * gpu::element_bytes(s_.params.store_type);
    const std::int64_t initial = std::clamp<std::int64_t>(s_.layout.initial_tokens(position_) - next_, 0, n_);
    if (initial > 0) window.upload_initial(next_, initial, row, row + half, n_);
    const std::int64_t skipped = std::max<std::int64_t>(initial, s_.layout.remainder_first(position_) - next_);
    if (skipped >= n_) return;
    widen(s_.params.store_type, row, kv_heads, n, dim, host_k_.data());
    widen(s_.params.store_type, row + half, kv_heads, n, dim, host_v_.data());
    const std::size_t bytes = n * kv_heads * dim * sizeof(float);
    s_.device.upload(k_.data(), host_k_.data(), bytes);
    s_.device.upload(v_.data(), host_v_.data(), bytes);
    const std::int64_t at = skipped * static_cast<std::int64_t>(kv_heads * dim);
    const std::int64_t angle_at = skipped * s_.angles.half_dim();
    window.append(next_ + skipped, n_ - skipped, k_.f32() + at, v_.f32() + at, cos_.f32() + angle_at,
                  sin_.f32() + angle_at);
  }

  // r is stored head by head; the window keeps it token by token.
  void place_accumulators() {
    const auto heads = static_cast<std::size_t>(s_.format.mass_heads());
    if (heads == 0) return;
    const std::int64_t first = s_.layout.remainder_first(position_);
    const auto n = static_cast<std::size_t>(position_ - first);
    const std::string what = "accumulators at " + std::to_string(position_);
    if (checkpoint_.accumulators == nullptr) corrupt(what + " are missing");
    check_row(*checkpoint_.accumulators, s_.format.accumulators(first, static_cast<std::int64_t>(n)), what);
    const std::byte* stored = payload(*checkpoint_.accumulators).data();
    std::vector<float> by_head(heads * n), by_token(heads * n);
    for (std::size_t layer = 0; layer < s_.windows.size() && n > 0; ++layer) {
      std::memcpy(by_head.data(), stored + layer * by_head.size() * sizeof(float), by_head.size() * sizeof(float));
      for (std::size_t h = 0; h < heads; ++h)
        for (std::size_t i = 0; i < n; ++i) by_token[i * heads + h] = by_head[h * n + i];
      s_.device.upload(s_.windows[layer].mass(first), by_token.data(), by_token.size() * sizeof(float));
    }
  }

  Impl& s_;
  const Checkpoint& checkpoint_;
  std::int64_t position_;
  std::int64_t next_ = 0, n_ = 0;  // the tokens that are being placed
  gpu::Buffer k_, v_, cos_, sin_;  // [n, n_kv_heads, head_dim] twice, [n, head_dim/2] twice
  std::vector<float> host_k_, host_v_, host_cos_, host_sin_;
};

Checkpoint Context::checkpoint() const {
  Impl& s = *impl_;
  MNEME_CHECK(!s.pass.open);
  Checkpoint checkpoint;
  checkpoint.position = s.position;
  const bool has_initial = s.position >= s.params.n_init;
  std::int64_t first = has_initial ? s.layout.unit_first(s.format.blocks_put(s.position)) : 0;
  std::vector<std::byte> bytes;
  while (first < s.position) {
    const std::int64_t n = std::min(s.format.slice_tokens(), s.position - first);
    const ImageHeader header = s.format.slice(first, n);
    bytes.resize(header.payload_bytes);
    s.download_tokens(0, s.model.n_layers, s.position, first, n, bytes.data());
    checkpoint.slices.push_back(encode_image(header, bytes));
    first += n;
  }
  const auto heads = static_cast<std::size_t>(s.format.mass_heads());
  if (heads == 0) return checkpoint;
  first = s.layout.remainder_first(s.position);
  const auto n = static_cast<std::size_t>(s.position - first);
  std::vector<float> by_token(heads * n), by_head(s.windows.size() * heads * n);
  const auto mass_of = [&](std::size_t layer) {
    return std::as_bytes(std::span(s.windows[layer].mass(first), heads * n));
  };
  const auto place = [&](std::size_t layer, std::span<const std::byte> mass) {
    std::memcpy(by_token.data(), mass.data(), mass.size());
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t i = 0; i < n; ++i) by_head[(layer * heads + h) * n + i] = by_token[i * heads + h];
  };
  if (n > 0) s.device.download_each(s.windows.size(), mass_of, place);
  checkpoint.accumulators =
      encode_image(s.format.accumulators(first, static_cast<std::int64_t>(n)), std::as_bytes(std::span(by_head)));
  return checkpoint;
}

void Context::restore(const Checkpoint& checkpoint) {
  Impl& s = *impl_;
  MNEME_CHECK(!s.pass.open && s.position == 0);
  if (checkpoint.position < 0) corrupt("checkpoint at " + std::to_string(checkpoint.position));
  Restorer(s, checkpoint).run();
  s.position = checkpoint.position;
  s.residency.set_fresh(s.layout.units(s.position));
  s.index.set_stored(s.layout.units(s.position));
}

}  // namespace mneme::memory
