// Runs a grid: blocks in turn, the threads of a block as fibers on the calling thread. A fiber runs until it waits at a
// barrier or a warp collective; what it waits for is a counter that the last one to arrive moves on.
#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "tests/support/cuda_shim/shim.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_shim {

unsigned char* dynamic_shared_memory = nullptr;

namespace {

constexpr std::size_t kStackBytes = 256 * 1024;  // kernels keep small arrays in registers, here on the stack

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "cuda_shim: %s (block %u %u %u, thread %u %u %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x, threadIdx.y, threadIdx.z);
  std::abort();
}

struct Rendezvous {
  unsigned arrived = 0;     // count, or mask of lanes
  unsigned generation = 0;  // moved on when all have arrived
};

struct Warp {
  Rendezvous meeting;
  unsigned mask = 0;    // of the meeting under way
  unsigned exited = 0;  // lanes that have ended
  alignas(16) unsigned char slots[2][kWarp * kSlotBytes] = {};
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
  bool valid;
};

struct Thread {
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  bool finished = true;
  const unsigned* waits_for = nullptr;  // runnable once *waits_for != seen
  unsigned seen = 0;
  std::deque<std::vector<Copy>> groups;  // closed groups of copies, oldest first
  std::vector<Copy> open_group;
  boost::context::fiber fiber;
};

// The block that runs. One grid at a time: shim.cpp holds a lock.
struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Rendezvous barrier;
  unsigned alive = 0;
  Thread* running = nullptr;
  boost::context::fiber scheduler;
  const std::function<void()>* kernel = nullptr;
} block;

void back_to_scheduler() {
  block.scheduler = std::move(block.scheduler).resume();
}

void wait_until_moved(const unsigned& generation, unsigned seen) {
  Thread& self = *block.running;
  self.waits_for = &generation;
  self.seen = seen;
  back_to_scheduler();
}

void release_barrier_if_complete() {
  if (block.alive == 0 || block.barrier.arrived != block.alive) return;
  block.barrier.arrived = 0;
  ++block.barrier.generation;
}

boost::context::fiber thread_main(boost::context::fiber&& scheduler) {
  block.scheduler = std::move(scheduler);
  for (;;) {
    (*block.kernel)();
    Thread& self = *block.running;
    self.groups.clear();
    self.open_group.clear();
    self.finished = true;
    self.warp->exited |= 1u << self.lane;
    --block.alive;
    release_barrier_if_complete();
    back_to_scheduler();
  }
}

void resume(Thread& thread) {
  block.running = &thread;
  threadIdx = thread.index;
  thread.fiber = std::move(thread.fiber).resume();
}

void run_block() {
  const std::size_t n = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
  block.alive = static_cast<unsigned>(n);
  block.barrier = {};
  for (Warp& warp : block.warps) warp.meeting = {}, warp.exited = 0, warp.mask = 0;
  for (std::size_t i = 0; i < n; ++i) {
    Thread& thread = *block.threads[i];
    thread.finished = false;
    thread.waits_for = nullptr;
  }
  while (block.alive > 0) {
    bool progress = false;
    for (std::size_t i = 0; i < n; ++i) {
      Thread& thread = *block.threads[i];
      if (thread.finished || (thread.waits_for != nullptr && *thread.waits_for == thread.seen)) continue;
      thread.waits_for = nullptr;
      progress = true;
      resume(thread);
    }
    if (!progress) die("all threads wait: a barrier or a warp collective that not all of its threads reach");
  }
}

void prepare_threads() {
  const std::size_t n = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
  while (block.threads.size() < n) {
    auto thread = std::make_unique<Thread>();
    thread->fiber =
        boost::context::fiber(std::allocator_arg, boost::context::fixedsize_stack(kStackBytes), thread_main);
    block.threads.push_back(std::move(thread));
  }
  const std::size_t n_warps = (n + kWarp - 1) / kWarp;
  if (block.warps.size() < n_warps) block.warps.resize(n_warps);
  for (std::size_t i = 0; i < n; ++i) {
    Thread& thread = *block.threads[i];
    const auto at = static_cast<unsigned>(i);
    thread.index = {at % blockDim.x, at / blockDim.x % blockDim.y, at / (blockDim.x * blockDim.y)};
    thread.lane = at % kWarp;
    thread.warp = &block.warps[i / kWarp];
  }
}

}  // namespace

void run_grid(const dim3& grid, const dim3& threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = threads;
  block.kernel = &kernel;
  prepare_threads();
  // Exactly as large as asked for, so that a sanitizer sees what lies beyond; 0xFF.. is NaN in every float type.
  const std::size_t units = (shared_bytes + 15) / 16;
  const auto shared = std::make_unique<uint4[]>(units);
  dynamic_shared_memory = reinterpret_cast<unsigned char*>(shared.get());
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        std::fill_n(dynamic_shared_memory, units * 16, static_cast<unsigned char>(0xFF));
        run_block();
      }
    }
  }
  dynamic_shared_memory = nullptr;
}

void sync_threads() {
  const unsigned seen = block.barrier.generation;
  ++block.barrier.arrived;
  release_barrier_if_complete();
  if (block.barrier.generation == seen) wait_until_moved(block.barrier.generation, seen);
}

unsigned lane_of_thread() {
  return block.running->lane;
}

// Two sets of slots suffice: nobody can arrive at the meeting after next before everybody has left this one.
const unsigned char* collect(unsigned mask, const void* value, std::size_t bytes) {
  Thread& self = *block.running;
  Warp& warp = *self.warp;
  if (bytes > kSlotBytes) die("a lane gives more than a slot holds");
  if ((mask >> self.lane & 1u) == 0) die("a lane calls a collective whose mask leaves it out");
  if (warp.meeting.arrived == 0) warp.mask = mask;
  if (warp.mask != mask) die("lanes of a warp meet with different masks");
  if ((warp.exited & mask) != 0) die("a collective's mask names a lane that has ended");
  const unsigned seen = warp.meeting.generation;
  unsigned char* slots = warp.slots[seen % 2];
  std::memcpy(slots + self.lane * kSlotBytes, value, bytes);
  warp.meeting.arrived |= 1u << self.lane;
  if (warp.meeting.arrived == mask) {
    warp.meeting.arrived = 0;
    ++warp.meeting.generation;
  } else {
    wait_until_moved(warp.meeting.generation, seen);
  }
  return slots;
}

void copy_later(void* to, const void* from, std::size_t bytes, bool valid) {
  block.running->open_group.push_back({to, from, bytes, valid});
}

void commit_copies() {
  Thread& self = *block.running;
  self.groups.push_back(std::move(self.open_group));
  self.open_group.clear();
}

void wait_copies(int pending) {
  Thread& self = *block.running;
  while (self.groups.size() > static_cast<std::size_t>(pending)) {
    for (const Copy& copy : self.groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    self.groups.pop_front();
  }
}

void require_aligned(const void* address, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) die("a vector access is not aligned");
}

}  // namespace cuda_shim
