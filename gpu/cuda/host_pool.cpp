#include "gpu/cuda/host_pool.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "gpu/cuda/stream_signal.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr std::size_t kRowAlignment = 64;
constexpr std::size_t kFirstSlab = std::size_t{4} << 20;  // slabs grow with the pool
constexpr std::size_t kLargestSlab = std::size_t{64} << 20;
constexpr std::size_t kDownloadArea = std::size_t{16} << 20;  // a unit of 32 layers of an 8B model: 8 MiB

}  // namespace

PinnedMemory::PinnedMemory(std::size_t bytes) noexcept {
  void* data = nullptr;
  if (cudaHostAlloc(&data, bytes, cudaHostAllocPortable) != cudaSuccess) {
    cudaGetLastError();  // a fault of the card is found by the next operation
    return;
  }
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
}

PinnedMemory::~PinnedMemory() {
  cudaFreeHost(data_);
}

RowUploads::RowUploads(cudaStream_t compute, StreamSignal* signal) : compute_(compute), signal_(signal) {
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, 0), "creating the upload stream");
}

RowUploads::~RowUploads() {
  wait_for_all();
  cudaStreamDestroy(stream_);
}

std::unique_ptr<HostRows> RowUploads::make_rows(std::size_t row_bytes, std::size_t max_rows) {
  return std::make_unique<PinnedRows>(*this, row_bytes, max_rows);
}

RowUploads::Found RowUploads::find(const void* row) const noexcept {
  const auto* byte = static_cast<const std::byte*>(row);
  auto at = slabs_.upper_bound(byte);
  if (at == slabs_.begin()) return {};
  --at;
  const auto offset = static_cast<std::size_t>(byte - at->first);
  const Slab& slab = at->second;
  if (offset >= slab.bytes) return {};
  return {slab.rows, slab.first_row + offset / slab.rows->row_bytes_};
}

void RowUploads::upload(std::span<const UnitUpload> units, std::size_t bytes, PinnedRing& ring) {
  bool begun = false;
  for (const UnitUpload& unit : units) {
    const Found found = find(unit.row);
    if (found.rows == nullptr) {
      ring.upload(unit.slot, unit.row, bytes);
      continue;
    }
    if (!begun) begin_batch();
    begun = true;
    const cudaError_t error = cudaMemcpyAsync(unit.slot, unit.row, bytes, cudaMemcpyHostToDevice, stream_);
    if (error != cudaSuccess) cudaStreamSynchronize(stream_);  // no event will stand behind what was begun
    check(error, "uploading a row");
    found.rows->last_copy_[found.row] = batch_;
  }
  if (begun) end_batch();
}

// P1, first half.
void RowUploads::begin_batch() {
  check(cudaEventRecord(compute_done_.get(), compute_), "recording an event");
  check(cudaStreamWaitEvent(stream_, compute_done_.get()), "ordering uploads");
  ++batch_;
}

// P1, second half.
void RowUploads::end_batch() {
  const cudaEvent_t mark = marks_[batch_ % kMarks].get();
  const cudaError_t error = cudaEventRecord(mark, stream_);
  if (error != cudaSuccess) cudaStreamSynchronize(stream_);
  check(error, "recording an event");
  check(cudaStreamWaitEvent(compute_, mark), "ordering uploads");
}

std::uint64_t RowUploads::passed() {
  for (std::uint64_t b = std::max(passed_ + 1, oldest_mark()); b <= batch_; ++b) {
    const cudaError_t state = cudaEventQuery(marks_[b % kMarks].get());
    if (state == cudaErrorNotReady) {
      cudaGetLastError();
      break;
    }
    check(state, "asking for uploads");
    passed_ = b;
  }
  return passed_;
}

void RowUploads::wait_for(std::uint64_t batch) {
  const std::uint64_t marked = std::max(batch, oldest_mark());
  const cudaEvent_t mark = marks_[marked % kMarks].get();
  if (signal_ != nullptr) {
    signal_->wait(mark, "waiting for uploads");
  } else {
    check(cudaEventSynchronize(mark), "waiting for uploads");
  }
  passed_ = std::max(passed_, marked);
}

// Errors are for the next operation to report.
void RowUploads::wait_for_all() noexcept {
  try {
    if (batch_ > 0) wait_for(batch_);
  } catch (...) {
  }
}

PinnedRows::PinnedRows(RowUploads& uploads, std::size_t row_bytes, std::size_t max_rows)
    : uploads_(&uploads),
      row_bytes_((row_bytes + kRowAlignment - 1) / kRowAlignment * kRowAlignment),
      max_rows_(max_rows) {}

PinnedRows::~PinnedRows() {
  uploads_->wait_for_all();
  const bool is_lost = uploads_->signal_ != nullptr && uploads_->signal_->is_lost();
  for (PinnedMemory& slab : slabs_) {
    uploads_->slabs_.erase(slab.data());
    if (is_lost) slab.keep_for_ever();
  }
}

std::size_t PinnedRows::bytes() const noexcept {
  return places_.size() * row_bytes_;
}

std::shared_ptr<std::byte> PinnedRows::take() {
  const auto earlier = [this](std::size_t a, std::size_t b) { return last_copy_[a] < last_copy_[b]; };
  const std::uint64_t done = uploads_->passed();
  auto row = std::find_if(free_.rbegin(), free_.rend(), [&](std::size_t r) { return last_copy_[r] <= done; });
  if (row == free_.rend() && grow()) row = free_.rbegin();
  if (row == free_.rend()) {
    if (free_.empty()) return nullptr;
    row = std::min_element(free_.rbegin(), free_.rend(), earlier);
    uploads_->wait_for(last_copy_[*row]);
  }
  const std::size_t taken = *row;
  free_.erase(std::next(row).base());
  return {at(taken), [this, taken](std::byte*) { free_.push_back(taken); }};
}

// A slab as large as all before it, within bounds. False: the pool is complete, or no more memory can be page-locked.
bool PinnedRows::grow() {
  const std::size_t wanted = std::clamp(bytes(), kFirstSlab, kLargestSlab) / row_bytes_;
  const std::size_t n = std::min(std::max<std::size_t>(wanted, 1), max_rows_ - places_.size());
  if (n == 0) return false;
  PinnedMemory slab(n * row_bytes_);
  if (slab.data() == nullptr) {
    max_rows_ = places_.size();
    return false;
  }
  const std::size_t first = places_.size();
  last_copy_.resize(first + n, 0);
  free_.reserve(first + n);
  for (std::size_t i = 0; i < n; ++i) places_.push_back(slab.data() + i * row_bytes_);
  for (std::size_t i = n; i > 0; --i) free_.push_back(first + i - 1);
  uploads_->slabs_[slab.data()] = {this, slab.bytes(), first};
  slabs_.push_back(std::move(slab));
  return true;
}

void Downloads::each(std::size_t n, const NextDownload& next, const Downloaded& downloaded) {
  constexpr std::size_t kAlignment = 64;
  if (n > 0 && area_ == nullptr) area_ = std::make_unique<PinnedMemory>(kDownloadArea);
  pieces_.clear();
  std::size_t used = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Piece piece{i, next(i)};
    if (used + piece.bytes.size() > area_->bytes()) {
      hand_over(downloaded);
      used = 0;
    }
    if (piece.bytes.size() > area_->bytes()) {
      download_alone(piece, downloaded);
      continue;
    }
    std::byte* place = area_->data() + used;
    check(cudaMemcpyAsync(place, piece.bytes.data(), piece.bytes.size(), cudaMemcpyDeviceToHost, stream_),
          "reading device memory");
    pieces_.push_back({i, {place, piece.bytes.size()}});
    used += (piece.bytes.size() + kAlignment - 1) / kAlignment * kAlignment;
  }
  hand_over(downloaded);
}

void Downloads::wait(std::string_view doing) {
  if (signal_ != nullptr) return signal_->wait(doing);
  check(cudaStreamSynchronize(stream_), doing);
}

void Downloads::hand_over(const Downloaded& downloaded) {
  if (pieces_.empty()) return;
  wait("waiting for downloads");
  for (const Piece& piece : pieces_) downloaded(piece.i, piece.bytes);
  pieces_.clear();
}

void Downloads::download_alone(const Piece& piece, const Downloaded& downloaded) {
  pageable_.resize(piece.bytes.size());
  check(cudaMemcpyAsync(pageable_.data(), piece.bytes.data(), pageable_.size(), cudaMemcpyDeviceToHost, stream_),
        "reading device memory");
  wait("reading device memory");
  downloaded(piece.i, pageable_);
}

}  // namespace mneme::gpu::cuda
