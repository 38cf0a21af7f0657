// Page-locked host memory: rows that the card fetches by a stream of its own, and the place where downloads land.
//
//   compute  ..| kernels that read the slots |--event--.              .--| kernels that read the rows |..
//   uploads                                            '-| row | row |-'--event: the rows may be written again
//
// Invariants
//  P1 A slot of device memory is overwritten only behind everything that was on the compute stream before the upload,
//     and read by the compute stream only behind it.
//  P2 A row of PinnedRows is handed out again only when the upload stream has passed its last copy. The host waits for
//     that only if no other room is left.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "gpu/cuda/runtime.hpp"
#include "gpu/device.hpp"

namespace mneme::gpu::cuda {

// Memory that cannot be page-locked: null, and no error, because there is a way without. Page-locking is slow.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::size_t bytes) noexcept;
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&&) = delete;

  std::byte* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }
  void keep_for_ever() noexcept { data_ = nullptr; }  // a lost device may still read it

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class PinnedRows;

// The upload stream of a device, and the pools whose rows it copies.
class RowUploads {
 public:
  RowUploads(cudaStream_t compute, StreamSignal* signal);
  ~RowUploads();
  RowUploads(const RowUploads&) = delete;
  RowUploads& operator=(const RowUploads&) = delete;

  // Room for at most max_rows rows. Must not outlive this object.
  std::unique_ptr<HostRows> make_rows(std::size_t row_bytes, std::size_t max_rows);
  // Copies the first `bytes` of each row into its slot: rows of the pools by the upload stream, others by the ring.
  void upload(std::span<const UnitUpload> units, std::size_t bytes, PinnedRing& ring);

 private:
  friend class PinnedRows;
  // A piece of a pool, by its first byte in slabs_.
  struct Slab {
    PinnedRows* rows = nullptr;
    std::size_t bytes = 0;
    std::size_t first_row = 0;
  };
  struct Found {
    PinnedRows* rows = nullptr;
    std::size_t row = 0;
  };
  Found find(const void* row) const noexcept;
  void begin_batch();
  void end_batch();

  // Batches of copies are numbered from 1; one event stands behind each of the last kMarks batches.
  static constexpr std::uint64_t kMarks = 8;
  std::uint64_t passed();  // every batch up to this one is done
  void wait_for(std::uint64_t batch);
  void wait_for_all() noexcept;
  std::uint64_t oldest_mark() const noexcept { return batch_ < kMarks ? 1 : batch_ - kMarks + 1; }

  cudaStream_t compute_;
  StreamSignal* signal_;
  cudaStream_t stream_ = nullptr;
  Event compute_done_;
  std::array<Event, kMarks> marks_;  // of batch b: marks_[b % kMarks]
  std::uint64_t batch_ = 0, passed_ = 0;
  std::map<const std::byte*, Slab> slabs_;
};

// Rows of one size in page-locked slabs.
class PinnedRows final : public HostRows {
 public:
  PinnedRows(RowUploads& uploads, std::size_t row_bytes, std::size_t max_rows);
  ~PinnedRows() override;
  PinnedRows(const PinnedRows&) = delete;
  PinnedRows& operator=(const PinnedRows&) = delete;

  std::shared_ptr<std::byte> take() override;
  std::size_t bytes() const noexcept override;

 private:
  friend class RowUploads;
  bool grow();
  std::byte* at(std::size_t row) const noexcept { return places_[row]; }

  RowUploads* uploads_;
  std::size_t row_bytes_, max_rows_;
  std::vector<PinnedMemory> slabs_;
  std::vector<std::byte*> places_;        // of each row
  std::vector<std::uint64_t> last_copy_;  // of each row: the batch that copies it last; 0: none
  std::vector<std::size_t> free_;         // has room for all rows, so that letting go of one cannot fail
};

// Downloads through one page-locked area: one wait for as many pieces as it holds.
class Downloads {
 public:
  Downloads(cudaStream_t stream, StreamSignal* signal) noexcept : stream_(stream), signal_(signal) {}
  // gpu::Device::download_each.
  void each(std::size_t n, const NextDownload& next, const Downloaded& downloaded);

 private:
  struct Piece {
    std::size_t i = 0;
    std::span<const std::byte> bytes;
  };
  void wait(std::string_view doing);
  void hand_over(const Downloaded& downloaded);
  void download_alone(const Piece& piece, const Downloaded& downloaded);

  cudaStream_t stream_;
  StreamSignal* signal_;
  std::unique_ptr<PinnedMemory> area_;  // made when first used
  std::vector<Piece> pieces_;           // under way into the area
  std::vector<std::byte> pageable_;     // for pieces larger than the area
};

}  // namespace mneme::gpu::cuda
