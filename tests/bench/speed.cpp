// Measures prefill and decode of a model with its memory, as the engine runs them; one figure per run, for interleaving
// with other engines.
//   mneme_speed MODEL TEXT_FILE prefill:N | decode:PAST  [--threads N] [--repeat R] [--activations int8|f32]
// prefill:N   feeds the first N tokens of the text (repeated if it is short) to a fresh context with the model's preset
// decode:PAST feeds PAST tokens, then decodes 64 greedy tokens
// Prints tokens per second of every repetition and the median. Load time is not counted.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gpu/host/host_device.hpp"
#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"

namespace {

namespace gpu = mneme::gpu;
namespace memory = mneme::memory;
namespace model = mneme::model;
using Seconds = std::chrono::duration<double>;

constexpr std::int64_t kMaxPassTokens = 512;
constexpr int kDecodeTokens = 64;

struct Options {
  std::string model, text, what;
  std::int64_t n_tokens = 0;
  int threads = 0;
  int repeat = 3;
  gpu::ActivationType activations = gpu::ActivationType::int8;
};

Options parse(int argc, char** argv) {
  Options options;
  if (argc < 4)
    throw std::runtime_error("usage: mneme_speed MODEL TEXT_FILE prefill:N|decode:PAST [--threads N] [--repeat R]");
  options.model = argv[1];
  options.text = argv[2];
  const std::string what = argv[3];
  const std::size_t colon = what.find(':');
  if (colon == std::string::npos) throw std::runtime_error("expected prefill:N or decode:PAST, got " + what);
  options.what = what.substr(0, colon);
  options.n_tokens = std::stoll(what.substr(colon + 1));
  for (int i = 4; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--threads") options.threads = std::stoi(argv[i + 1]);
    if (name == "--repeat") options.repeat = std::stoi(argv[i + 1]);
    if (name == "--activations")
      options.activations = std::string(argv[i + 1]) == "f32" ? gpu::ActivationType::f32 : gpu::ActivationType::int8;
  }
  return options;
}

std::vector<model::TokenId> read_tokens(const model::ModelFile& file, const std::string& path, std::int64_t count) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::vector<model::TokenId> once = file.tokenizer().encode_text(text);
  if (once.empty()) throw std::runtime_error(path + " has no text");
  std::vector<model::TokenId> tokens;
  while (static_cast<std::int64_t>(tokens.size()) < count) tokens.insert(tokens.end(), once.begin(), once.end());
  tokens.resize(static_cast<std::size_t>(std::max<std::int64_t>(count, 1)));
  return tokens;
}

void prefill(model::Session& session, std::span<const model::TokenId> tokens) {
  while (!tokens.empty()) tokens = tokens.subspan(static_cast<std::size_t>(session.prefill_some(tokens)));
}

double measure(const Options& options, model::Transformer& transformer, std::span<const model::TokenId> tokens) {
  memory::MemoryStore store;
  const memory::Params params = memory::resolve(transformer.model().memory_shape(), {});
  model::Session session(transformer, store, params, {0, std::size_t{1} << 30U});
  if (options.what == "prefill") {
    const auto start = std::chrono::steady_clock::now();
    prefill(session, tokens);
    return static_cast<double>(tokens.size()) / Seconds(std::chrono::steady_clock::now() - start).count();
  }
  prefill(session, tokens);
  model::TokenId token = tokens.back();
  for (int i = 0; i < 4; ++i) session.decode(token);  // warm-up
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kDecodeTokens; ++i) {
    const std::span<const float> logits = session.decode(token);
    token = static_cast<model::TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  return kDecodeTokens / Seconds(std::chrono::steady_clock::now() - start).count();
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const auto device =
      gpu::make_host_device({.n_threads = options.threads, .activations = options.activations, .isa = ""});
  const auto file = model::ModelFile::load(options.model);
  model::Transformer transformer(*device, file, kMaxPassTokens);
  const std::vector<model::TokenId> tokens = read_tokens(*file, options.text, options.n_tokens);
  std::vector<double> rates;
  for (int i = 0; i < options.repeat; ++i) rates.push_back(measure(options, transformer, tokens));
  std::printf("device: %s\n", device->info().name.c_str());
  for (const double rate : rates)
    std::printf("%s:%lld %.2f tok/s\n", options.what.c_str(), static_cast<long long>(options.n_tokens), rate);
  std::sort(rates.begin(), rates.end());
  std::printf("median %.2f\n", rates[rates.size() / 2]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mneme_speed: %s\n", error.what());
    return 1;
  }
}
