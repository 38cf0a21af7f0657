// The runtime API of the CUDA stand-in. Work on a stream is done as late as the rules allow: when somebody waits for
// it. So a host that reads a result too early, or reuses memory that a stream has yet to read, gets wrong results here
// too.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/cuda_shim/shim.hpp"

using Operation = std::function<void()>;

struct CUgraph_st {
  std::vector<Operation> operations;
};
struct CUgraphExec_st {
  std::vector<Operation> operations;
};
struct CUstream_st {
  std::deque<Operation> queue;
  std::uint64_t issued = 0, done = 0;
  CUgraph_st* capture = nullptr;  // set: operations go there
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  std::uint64_t ticket = 0;  // done once stream->done >= ticket
  CUgraph_st* capture = nullptr;
};

namespace cuda_shim {
namespace {

constexpr std::align_val_t kAlignment{256};

struct State {
  std::recursive_mutex mutex;  // guards everything here and the grid that runs
  std::map<const void*, std::size_t> device, pinned;
  std::size_t device_bytes = 0, device_limit = std::size_t{8} << 30;
  std::size_t pinned_bytes = 0, pinned_limit = static_cast<std::size_t>(-1);
  std::set<CUstream_st*> streams;
  int fail_after = 0;
  cudaError_t failure = cudaSuccess, sticky = cudaSuccess, last = cudaSuccess;
  bool failure_is_sticky = false;
  int device_count = 1;
  Counts counts;
  bool hangs = false;
  bool has_driver = false;                                    // the driver's thread runs
  std::deque<std::pair<CUstream_st*, std::uint64_t>> wanted;  // what it runs: streams, up to which ticket
  std::condition_variable_any driver;
};
State& state = *new State;  // never destroyed: the driver's thread uses it to the end, and a hung device its memory

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t fail(cudaError_t error) {
  state.last = error;
  return error;
}

// Every call passes here.
cudaError_t enter() {
  if (state.sticky != cudaSuccess) return fail(state.sticky);
  if (state.fail_after == 0 || --state.fail_after > 0) return cudaSuccess;
  if (state.failure_is_sticky) state.sticky = state.failure;
  return fail(state.failure);
}

bool is_pinned(const void* address) {
  auto at = state.pinned.upper_bound(address);
  if (at == state.pinned.begin()) return false;
  --at;
  return static_cast<const std::byte*>(address) < static_cast<const std::byte*>(at->first) + at->second;
}

void run_until(CUstream_st* stream, std::uint64_t ticket) {
  if (state.hangs && stream->done < ticket) {
    std::fprintf(stderr, "cuda_shim: somebody waits in the runtime for a device that hangs\n");
    std::abort();
  }
  while (stream->done < ticket && !stream->queue.empty()) {
    const Operation next = std::move(stream->queue.front());
    stream->queue.pop_front();
    next();
    ++stream->done;
  }
}

void run_all(CUstream_st* stream) {
  run_until(stream, stream->issued);
}

void issue(CUstream_st* stream, Operation operation) {
  if (stream == nullptr) {
    std::fprintf(stderr, "cuda_shim: the default stream is used\n");
    std::abort();
  }
  if (stream->capture != nullptr) {
    stream->capture->operations.push_back(std::move(operation));
    return;
  }
  stream->queue.push_back(std::move(operation));
  ++stream->issued;
}

// The driver's own thread: runs streams up to the host functions that were put on them.
void run_driver() {
  std::unique_lock lock(state.mutex);
  for (;;) {
    state.driver.wait(lock, [] { return !state.hangs && !state.wanted.empty(); });
    const auto [stream, ticket] = state.wanted.front();
    state.wanted.pop_front();
    if (state.streams.contains(stream)) run_until(stream, ticket);
  }
}

// Waiting is not allowed while a stream is being captured.
cudaError_t wait(CUstream_st* stream) {
  if (stream->capture != nullptr) return fail(cudaErrorStreamCaptureInvalidated);
  ++state.counts.waits;
  run_all(stream);
  return state.sticky;
}

}  // namespace

void fail_call(int after, cudaError_t error, bool sticky) {
  const Lock lock(state.mutex);
  state.fail_after = after;
  state.failure = error;
  state.failure_is_sticky = sticky;
}
void clear_failures() {
  const Lock lock(state.mutex);
  state.fail_after = 0;
  state.sticky = state.last = cudaSuccess;
}
void set_device_memory(std::size_t bytes) {
  const Lock lock(state.mutex);
  state.device_limit = bytes;
}
void set_pinned_memory(std::size_t bytes) {
  const Lock lock(state.mutex);
  constexpr std::size_t kUnbounded = static_cast<std::size_t>(-1);
  state.pinned_limit = bytes > kUnbounded - state.pinned_bytes ? kUnbounded : state.pinned_bytes + bytes;
}
void hang(bool hangs) {
  const Lock lock(state.mutex);
  state.hangs = hangs;
  state.driver.notify_one();
}
Counts counts() {
  const Lock lock(state.mutex);
  return state.counts;
}
int set_device_count(int count) {
  const Lock lock(state.mutex);
  return std::exchange(state.device_count, count);
}

cudaError_t launch_grid(const cudaLaunchConfig_t& config, std::function<void()> kernel) {
  const Lock lock(state.mutex);
  if (const auto error = enter(); error != cudaSuccess) return error;
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  constexpr unsigned kMaxGridYz = 65535;
  constexpr std::size_t kMaxShared = 227 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > kMaxGridYz || grid.z > kMaxGridYz || threads == 0 ||
      threads > 1024 || config.dynamicSmemBytes > kMaxShared) {
    return fail(cudaErrorInvalidConfiguration);
  }
  ++state.counts.launches;
  issue(config.stream, [grid, block, bytes = config.dynamicSmemBytes, kernel = std::move(kernel)] {
    ++state.counts.grids;
    run_grid(grid, block, bytes, kernel);
  });
  return cudaSuccess;
}

cudaError_t issue_library_call(cudaStream_t stream, std::function<void()> work) {
  const Lock lock(state.mutex);
  if (const auto error = enter(); error != cudaSuccess) return error;
  ++state.counts.launches;
  issue(stream, std::move(work));
  return cudaSuccess;
}

}  // namespace cuda_shim

using namespace cuda_shim;

#define MNEME_SHIM_ENTER()      \
  const Lock lock(state.mutex); \
  if (const auto error = enter(); error != cudaSuccess) return error

cudaError_t cudaGetDeviceCount(int* count) {
  MNEME_SHIM_ENTER();
  *count = state.device_count;
  return state.device_count == 0 ? fail(cudaErrorNoDevice) : cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  MNEME_SHIM_ENTER();
  if (device < 0 || device >= state.device_count) return fail(cudaErrorInvalidDevice);
  *properties = {"host stand-in", state.device_limit, 9, 0, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  MNEME_SHIM_ENTER();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  MNEME_SHIM_ENTER();
  return device >= 0 && device < state.device_count ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  MNEME_SHIM_ENTER();
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) {
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  MNEME_SHIM_ENTER();
  *free = state.device_limit - std::min(state.device_limit, state.device_bytes);
  *total = state.device_limit;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const Lock lock(state.mutex);
  const cudaError_t error = state.sticky != cudaSuccess ? state.sticky : state.last;
  state.last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  const Lock lock(state.mutex);
  return state.sticky != cudaSuccess ? state.sticky : state.last;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    default:
      return "cudaError (stand-in)";
  }
}
const char* cudaGetErrorString(cudaError_t) {
  return "an error of the stand-in";
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  MNEME_SHIM_ENTER();
  if (bytes > state.device_limit - std::min(state.device_limit, state.device_bytes)) {
    return fail(cudaErrorMemoryAllocation);
  }
  *data = ::operator new(std::max<std::size_t>(bytes, 1), kAlignment);
  std::memset(*data, 0xFF, bytes);  // NaN in every float type
  state.device[*data] = bytes;
  state.device_bytes += bytes;
  ++state.counts.allocations;
  return cudaSuccess;
}
// Also after a sticky error, so that owners can be destroyed.
cudaError_t cudaFree(void* data) {
  const Lock lock(state.mutex);
  if (data == nullptr) return cudaSuccess;
  for (CUstream_st* stream : state.streams) run_all(stream);
  const auto found = state.device.find(data);
  if (found == state.device.end()) return fail(cudaErrorInvalidValue);
  state.device_bytes -= found->second;
  state.device.erase(found);
  ::operator delete(data, kAlignment);
  return state.sticky;
}
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) {
  MNEME_SHIM_ENTER();
  if (bytes > state.pinned_limit - std::min(state.pinned_limit, state.pinned_bytes)) {
    return fail(cudaErrorMemoryAllocation);
  }
  *data = ::operator new(std::max<std::size_t>(bytes, 1), kAlignment);
  state.pinned[*data] = bytes;
  state.pinned_bytes += bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  const Lock lock(state.mutex);
  if (data == nullptr) return cudaSuccess;
  for (CUstream_st* stream : state.streams) run_all(stream);
  const auto found = state.pinned.find(data);
  if (found == state.pinned.end()) return fail(cudaErrorInvalidValue);
  state.pinned_bytes -= found->second;
  state.pinned.erase(found);
  ::operator delete(data, kAlignment);
  return state.sticky;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  MNEME_SHIM_ENTER();
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  if (bytes == 0) return cudaSuccess;
  const bool staged = kind == cudaMemcpyHostToDevice && !is_pinned(from);
  if (staged) {
    if (stream->capture != nullptr) return fail(cudaErrorStreamCaptureInvalidated);
    auto copy = std::make_shared<std::vector<std::byte>>(bytes);
    std::memcpy(copy->data(), from, bytes);
    issue(stream, [to, copy] { std::memcpy(to, copy->data(), copy->size()); });
    return cudaSuccess;
  }
  issue(stream, [to, from, bytes] { std::memmove(to, from, bytes); });
  if (kind == cudaMemcpyDeviceToHost && !is_pinned(to)) return wait(stream);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  if (bytes > 0) issue(stream, [to, value, bytes] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  MNEME_SHIM_ENTER();
  *stream = new CUstream_st;
  state.streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(state.mutex);
  run_all(stream);
  state.streams.erase(stream);
  delete stream;
  return state.sticky;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  return wait(stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  return stream->queue.empty() ? cudaSuccess : fail(cudaErrorNotReady);
}
cudaError_t cudaDeviceSynchronize() {
  MNEME_SHIM_ENTER();
  ++state.counts.waits;
  for (CUstream_st* stream : state.streams) run_all(stream);
  return state.sticky;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  MNEME_SHIM_ENTER();
  if (event->capture != nullptr) {  // the stream joins the capture, whose operations stay in one order
    stream->capture = event->capture;
    return cudaSuccess;
  }
  if (event->stream == nullptr) return cudaSuccess;
  issue(stream, [other = event->stream, ticket = event->ticket] {
    if (state.streams.contains(other)) run_until(other, ticket);  // a stream that is destroyed has done its work
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  MNEME_SHIM_ENTER();
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  event->capture = stream->capture;
  event->stream = stream;
  if (stream->capture == nullptr) event->ticket = stream->issued;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  MNEME_SHIM_ENTER();
  ++state.counts.waits;
  if (event->stream != nullptr) run_until(event->stream, event->ticket);
  return state.sticky;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  MNEME_SHIM_ENTER();
  if (event->stream == nullptr || event->stream->done >= event->ticket) return cudaSuccess;
  return fail(cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 0.001f;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  MNEME_SHIM_ENTER();
  issue(stream, [function, argument] {
    if (state.sticky == cudaSuccess) function(argument);  // the driver does not call it after an error either
  });
  if (stream->capture != nullptr) return cudaSuccess;
  ++state.counts.waits;
  if (!std::exchange(state.has_driver, true)) std::thread(run_driver).detach();
  state.wanted.emplace_back(stream, stream->issued);
  state.driver.notify_one();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  MNEME_SHIM_ENTER();
  return value <= 227 * 1024 ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  MNEME_SHIM_ENTER();
  stream->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(state.mutex);
  *graph = stream->capture;
  for (CUstream_st* other : state.streams) {
    if (other->capture == *graph) other->capture = nullptr;
  }
  return *graph == nullptr ? fail(cudaErrorStreamCaptureInvalidated) : enter();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  MNEME_SHIM_ENTER();
  *exec = new CUgraphExec_st{graph->operations};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  MNEME_SHIM_ENTER();
  ++state.counts.graph_launches;
  issue(stream, [operations = exec->operations] {
    for (const Operation& operation : operations) operation();
  });
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
