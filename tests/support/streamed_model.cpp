// Threads take pieces of tensors in turn, draw and quantise them, and write them at their place in the file.
#include "tests/support/streamed_model.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "tests/support/quantise.hpp"

namespace mneme::test {
namespace {

constexpr std::size_t kPieceElements = std::size_t{1} << 20;

// splitmix64: the i-th number of a stream, from its index alone.
std::uint64_t mixed(std::uint64_t i) {
  i += 0x9E3779B97F4A7C15U;
  i = (i ^ i >> 30U) * 0xBF58476D1CE4E5B9U;
  i = (i ^ i >> 27U) * 0x94D049BB133111EBU;
  return i ^ i >> 31U;
}

// About normal, mean 0 and deviation 1: the sum of the four 16-bit parts of a random word. Quicker than the twelve
// draws of tiny models, and billions are drawn.
float normal_from(std::uint64_t word) {
  const auto sum =
      static_cast<std::int64_t>((word & 0xFFFFU) + (word >> 16U & 0xFFFFU) + (word >> 32U & 0xFFFFU) + (word >> 48U));
  constexpr float kDeviation = 37837.0F;  // of the sum: sqrt(4 / 12) * 65536
  return static_cast<float>(sum - 2 * 65535) / kDeviation;
}

// A run of rows of one tensor.
struct Piece {
  const TensorPlan* tensor = nullptr;
  std::uint64_t stream = 0;  // of the tensor's random numbers
  std::size_t first_row = 0, n_rows = 0;
  std::uint64_t at = 0;  // in the file
};

std::vector<float> draw(const Piece& piece) {
  const TensorPlan& tensor = *piece.tensor;
  if (!tensor.values.empty()) return tensor.values;
  const std::size_t n_in = static_cast<std::size_t>(tensor.n_in), first = piece.first_row * n_in;
  std::vector<float> values(piece.n_rows * n_in);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float quiet = first + i < tensor.n_quiet() ? kQuietRows : 1.0F;
    values[i] = tensor.mean + tensor.deviation * quiet * normal_from(mixed(piece.stream + first + i));
  }
  return values;
}

class File {
 public:
  explicit File(const std::filesystem::path& path)
      : path_(path), fd_(open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666)) {
    if (fd_ < 0) fail("creating");
  }
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(std::uint64_t at, const std::string& bytes) const {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t n = pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(at + done));
      if (n < 0 && errno != EINTR) fail("writing");
      if (n > 0) done += static_cast<std::size_t>(n);
    }
  }

 private:
  [[noreturn]] void fail(const char* doing) const {
    throw std::system_error(errno, std::generic_category(), std::string(doing) + " " + path_.string());
  }

  std::filesystem::path path_;
  int fd_;
};

// Runs work(i) for i < n on several threads; throws what the first one threw.
template <typename Work>
void in_parallel(std::size_t n, int n_threads, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr problem;
  std::mutex problem_mutex;  // guards problem
  const auto run = [&] {
    try {
      for (std::size_t i = next++; i < n; i = next++) work(i);
    } catch (...) {
      next = n;
      const std::lock_guard lock(problem_mutex);
      if (!problem) problem = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < n_threads; ++i) threads.emplace_back(run);
  run();
  for (std::thread& thread : threads) thread.join();
  if (problem) std::rethrow_exception(problem);
}

std::vector<Piece> cut(const TensorPlan& tensor, std::uint64_t stream, std::uint64_t at) {
  std::vector<Piece> pieces;
  const std::size_t rows = std::max<std::size_t>(kPieceElements / static_cast<std::size_t>(tensor.n_in), 1);
  const std::size_t row_bytes = gpu::row_bytes(tensor.type, static_cast<std::size_t>(tensor.n_in));
  for (std::size_t row = 0; row < tensor.n_rows(); row += rows) {
    pieces.push_back({&tensor, stream, row, std::min(rows, tensor.n_rows() - row), at + row * row_bytes});
  }
  return pieces;
}

TinyModelSpec tiny_shape() {
  TinyModelSpec spec;
  spec.n_embd = 256;
  spec.head_dim = 64;
  spec.n_ff = 512;
  spec.n_vocab = 384;
  spec.n_ctx = 2048;
  return spec;
}

TinyModelSpec qwen_half() {
  TinyModelSpec spec;
  spec.architecture = "qwen2";
  spec.n_layers = 24;
  spec.n_embd = 896;
  spec.n_heads = 14;
  spec.n_kv_heads = 2;
  spec.head_dim = 64;
  spec.n_ff = 4864;
  spec.n_ctx = 32768;
  spec.n_vocab = 151936;
  spec.rope_base = 1e6F;
  return spec;
}

TinyModelSpec llama_1b() {
  TinyModelSpec spec;
  spec.n_layers = 16;
  spec.n_embd = 2048;
  spec.n_heads = 32;
  spec.n_kv_heads = 8;
  spec.head_dim = 64;
  spec.n_ff = 8192;
  spec.n_ctx = 131072;
  spec.n_vocab = 128256;
  spec.rope_base = 5e5F;
  spec.has_rope_freqs = true;
  return spec;
}

TinyModelSpec llama_8b() {
  TinyModelSpec spec = llama_1b();
  spec.n_layers = 32;
  spec.n_embd = 4096;
  spec.head_dim = 128;
  spec.n_ff = 14336;
  spec.is_tied = false;
  return spec;
}

TinyModelSpec shape(const std::string& name) {
  if (name == "tiny") return tiny_shape();
  if (name == "0.5B") return qwen_half();
  if (name == "1B") return llama_1b();
  if (name == "8B") return llama_8b();
  throw std::invalid_argument("no model shape is named " + name);
}

}  // namespace

const std::vector<std::string>& model_shape_names() {
  static const std::vector<std::string> names = {"tiny", "0.5B", "1B", "8B"};
  return names;
}

TinyModelSpec model_shape(const std::string& name, gpu::DType type) {
  TinyModelSpec spec = shape(name);
  spec.type = type;
  const int block = static_cast<int>(gpu::traits(type).block_elements);
  if (spec.n_embd % block != 0) {  // rows of n_ff elements are whole blocks in every shape
    for (const char* kind :
         {"token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"}) {
      spec.types[kind] = gpu::DType::q5_0;
    }
  }
  return spec;
}

std::uint64_t write_streamed_model(const std::filesystem::path& path, const TinyModelSpec& spec, int n_threads) {
  GgufWriter file = model_keys(spec);
  const std::vector<TensorPlan> tensors = plan_tensors(spec);
  std::uint64_t offset = 0;  // of a tensor behind the header
  for (const TensorPlan& tensor : tensors) {
    offset = (offset + file.alignment - 1) / file.alignment * file.alignment;
    file.add_tensor(tensor.name, tensor.ne(), ggml_type(tensor.type), "");
    file.tensors.back().offset = offset;
    offset += gpu::row_bytes(tensor.type, tensor.n_elements());
  }
  const std::string header = file.bytes();
  std::vector<Piece> pieces;
  std::uint64_t stream = mixed(spec.seed);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::vector<Piece> of_tensor = cut(tensors[i], stream, header.size() + *file.tensors[i].offset);
    pieces.insert(pieces.end(), of_tensor.begin(), of_tensor.end());
    stream += tensors[i].n_elements();
  }
  const File out(path);
  out.write(0, header);
  if (n_threads == 0) n_threads = std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
  in_parallel(pieces.size(), n_threads,
              [&](std::size_t i) { out.write(pieces[i].at, quantise(pieces[i].tensor->type, draw(pieces[i]))); });
  return header.size() + offset;
}

}  // namespace mneme::test
