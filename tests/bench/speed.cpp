// Measures prefill and decode of a model with its memory, as the engine runs them; for interleaving with other engines.
//   mneme_speed MODEL TEXT_FILE prefill:N | decode:PAST | ladder:N,N,...  [options]
// prefill:N    feeds the first N tokens of the text (repeated if it is short) to a fresh context with the model's
// preset decode:PAST  feeds PAST tokens, then decodes greedy tokens ladder:N,..  feeds up to each N in turn (16K and 1M
// are understood) and decodes there, in one context: one line a rung TEXT_FILE -: random tokens instead of a text.
//   --device cpu|cuda:N        --threads N            --repeat R (prefill, decode)    --activations int8|f32 (cpu)
//   --tokens N   tokens to decode at a time (64)       --selector representatives|two_stage
//   --unit-type f16|q8         --cached-blocks N|all (unit slots on the device per layer; all: every unit of the
//   ladder)
//   --host-gib N (1)           --ceiling GBPS (what the device's memory gives; else measured first, for ladder only)
// prefill and decode print tokens per second of every repetition and the median. A rung prints tokens per second of
// feeding the tokens since the rung before, p50 and p99 of a token's wall time from the call to the chosen token, bytes
// that a token reads (weights; attended keys and values; index and candidates' keys), GB/s and the share of the
// ceiling. Load time is not counted. Memory's rows are kept in RAM.
#include <algorithm>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>

#include <vector>

#include "gpu/host/host_device.hpp"
#include "memory/memory_store.hpp"
#include "runtime/model/engine.hpp"
#include "sdk/src/devices.hpp"
#include "tests/bench/traffic.hpp"

namespace {

namespace gpu = mneme::gpu;
namespace memory = mneme::memory;
namespace model = mneme::model;
using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: mneme_speed MODEL TEXT_FILE|- prefill:N|decode:PAST|ladder:N,N,... [--device NAME] [--threads N] "
    "[--repeat R] [--tokens N] [--selector NAME] [--unit-type f16|q8] [--cached-blocks N|all] [--host-gib N] "
    "[--ceiling GBPS] [--activations int8|f32]";

struct Options {
  std::string model, text, what;
  std::vector<std::int64_t> n_tokens;  // one for prefill and decode, ascending for ladder
  std::string device = "cpu";
  int threads = 0;
  int repeat = 3;
  int decode_tokens = 64;
  gpu::ActivationType activations = gpu::ActivationType::int8;
  memory::ParamOverrides memory;
  bool all_resident = false;
  std::size_t host_bytes = std::size_t{1} << 30U;
  double ceiling = 0;  // GB/s; 0: measure
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// "65536", "64K" or "1M".
std::int64_t count(const std::string& text) {
  std::size_t end = 0;
  std::int64_t value = std::stoll(text, &end);
  for (; end < text.size(); ++end) {
    if (text[end] != 'K' && text[end] != 'M') throw std::runtime_error("expected a number, got " + text);
    value *= text[end] == 'K' ? 1024 : 1024 * 1024;
  }
  return value;
}

void set_option(Options& options, const std::string& name, const std::string& value) {
  const auto one_of = [&](const char* first, const char* second) {
    if (value != first && value != second) throw std::runtime_error(name + " is " + first + " or " + second);
    return value == first;
  };
  if (name == "--device") {
    options.device = value;
  } else if (name == "--threads") {
    options.threads = std::stoi(value);
  } else if (name == "--repeat") {
    options.repeat = std::max(std::stoi(value), 1);
  } else if (name == "--tokens") {
    options.decode_tokens = std::max(std::stoi(value), 1);
  } else if (name == "--activations") {
    options.activations = one_of("f32", "int8") ? gpu::ActivationType::f32 : gpu::ActivationType::int8;
  } else if (name == "--selector") {
    options.memory.selector = one_of("representatives", "two_stage") ? memory::SelectorKind::representatives
                                                                     : memory::SelectorKind::two_stage;
  } else if (name == "--unit-type") {
    options.memory.unit_type = one_of("q8", "f16") ? gpu::KvType::q8 : gpu::KvType::f16;
  } else if (name == "--cached-blocks") {
    options.all_resident = value == "all";
    if (!options.all_resident) options.memory.cached_blocks = count(value);
  } else if (name == "--host-gib") {
    options.host_bytes = static_cast<std::size_t>(count(value)) << 30U;
  } else if (name == "--ceiling") {
    options.ceiling = std::stod(value);
  } else {
    throw std::runtime_error("unknown option " + name + "\n" + kUsage);
  }
}

Options parse(int argc, char** argv) {
  Options options;
  if (argc < 4 || argc % 2 != 0) throw std::runtime_error(kUsage);
  options.model = argv[1];
  options.text = argv[2];
  const std::string what = argv[3];
  const std::size_t colon = what.find(':');
  options.what = what.substr(0, colon);
  if (colon == std::string::npos || (options.what != "prefill" && options.what != "decode" && options.what != "ladder"))
    throw std::runtime_error("expected prefill:N, decode:PAST or ladder:N,N,..., got " + what);
  for (std::size_t at = colon; at != std::string::npos; at = what.find(',', at + 1)) {
    options.n_tokens.push_back(count(what.substr(at + 1, what.find(',', at + 1) - at - 1)));
  }
  if (options.what != "ladder") options.n_tokens.resize(1);
  std::sort(options.n_tokens.begin(), options.n_tokens.end());
  for (int i = 4; i < argc; i += 2) set_option(options, argv[i], argv[i + 1]);
  return options;
}

std::unique_ptr<gpu::Device> make_device(const Options& options) {
  if (options.device != "cpu") return mneme::detail::make_device(options.device, options.threads);
  return gpu::make_host_device({.n_threads = options.threads, .activations = options.activations, .isa = ""});
}

// Ids that a text of every token could have: about evenly spread, from their place alone.
std::vector<model::TokenId> random_tokens(const model::ModelFile& file, std::int64_t n) {
  const auto n_vocab = static_cast<std::uint64_t>(file.config().n_vocab);
  std::vector<model::TokenId> tokens(static_cast<std::size_t>(n));
  std::uint64_t state = 1;
  for (model::TokenId& token : tokens) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    token = static_cast<model::TokenId>((state >> 33U) % n_vocab);
  }
  return tokens;
}

std::vector<model::TokenId> read_tokens(const model::ModelFile& file, const std::string& path, std::int64_t n) {
  n = std::max<std::int64_t>(n, 1);
  if (path == "-") return random_tokens(file, n);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const std::vector<model::TokenId> once = file.tokenizer().encode_text(text);
  if (once.empty()) throw std::runtime_error(path + " has no text");
  std::vector<model::TokenId> tokens;
  while (static_cast<std::int64_t>(tokens.size()) < n) tokens.insert(tokens.end(), once.begin(), once.end());
  tokens.resize(static_cast<std::size_t>(n));
  return tokens;
}

// Feeds the tokens; says on stderr how far it is, every ten seconds.
void prefill(model::Session& session, std::span<const model::TokenId> tokens) {
  const std::int64_t end = session.position() + static_cast<std::int64_t>(tokens.size());
  auto said = Clock::now();
  while (!tokens.empty()) {
    tokens = tokens.subspan(static_cast<std::size_t>(session.prefill_some(tokens)));
    if (seconds_since(said) < 10) continue;
    said = Clock::now();
    std::fprintf(stderr, "fed %lld of %lld tokens\n", static_cast<long long>(session.position()),
                 static_cast<long long>(end));
  }
}

// Seconds of each of n greedy tokens, chosen where the engine chooses them, after four that warm up.
std::vector<double> decode_times(model::Session& session, model::TokenId token, int n) {
  constexpr int kWarmUp = 4;
  model::Sampler greedy({}, static_cast<std::size_t>(session.n_vocab()));
  std::vector<double> times;
  for (int i = 0; i < kWarmUp + n; ++i) {
    const auto start = Clock::now();
    token = session.decode_and_sample(token, greedy, {}).id;
    if (i >= kWarmUp) times.push_back(seconds_since(start));
  }
  return times;
}

// One run of prefill:N or decode:PAST: tokens per second.
double measure(const Options& options, model::Transformer& transformer, std::span<const model::TokenId> tokens) {
  memory::MemoryStore store;
  const memory::Params params = memory::resolve(transformer.model().memory_shape(), options.memory);
  model::Session session(transformer, store, params, {0, options.host_bytes});
  const auto start = Clock::now();
  prefill(session, tokens);
  if (options.what == "prefill") return static_cast<double>(tokens.size()) / seconds_since(start);
  double sum = 0;
  for (const double seconds : decode_times(session, tokens.back(), options.decode_tokens)) sum += seconds;
  return options.decode_tokens / sum;
}

int run_repeated(const Options& options, model::Transformer& transformer, std::span<const model::TokenId> tokens) {
  std::vector<double> rates;
  for (int i = 0; i < options.repeat; ++i) rates.push_back(measure(options, transformer, tokens));
  for (const double rate : rates)
    std::printf("%s:%lld %.2f tok/s\n", options.what.c_str(), static_cast<long long>(options.n_tokens[0]), rate);
  std::sort(rates.begin(), rates.end());
  std::printf("median %.2f\n", rates[rates.size() / 2]);
  return 0;
}

int run_ladder(Options options, model::Transformer& transformer, std::span<const model::TokenId> tokens) {
  const model::ModelFile& file = transformer.model();
  if (options.all_resident) {
    const memory::Params preset = memory::resolve(file.memory_shape(), options.memory);
    const std::int64_t end =
        options.n_tokens.back() + static_cast<std::int64_t>(options.n_tokens.size() + 1) * (options.decode_tokens + 4);
    options.memory.cached_blocks = std::max(end / preset.block + 1, preset.cached_blocks);
  }
  const memory::Params params = memory::resolve(file.memory_shape(), options.memory);
  const double ceiling =
      options.ceiling > 0 ? options.ceiling : mneme::bench::measured_ceiling(transformer.device(), options.device);
  std::printf("ceiling: %.1f GB/s (%s)\n", ceiling, options.ceiling > 0 ? "given" : "measured before");
  std::printf("%10s %10s %8s %8s %8s %9s %8s %9s %8s %8s\n", "past", "prefill/s", "p50 ms", "p99 ms", "tok/s",
              "weights", "KV", "selection", "GB/s", "ceiling");
  memory::MemoryStore store;
  model::Session session(transformer, store, params, {0, options.host_bytes});
  std::string pairs;
  for (std::size_t fed = 0; const std::int64_t rung : options.n_tokens) {
    const auto n = static_cast<std::size_t>(std::max<std::int64_t>(rung - session.position(), 1));
    const auto start = Clock::now();
    prefill(session, tokens.subspan(fed, n));
    const double prefill_rate = static_cast<double>(n) / seconds_since(start);
    fed += n;
    std::vector<double> times = decode_times(session, tokens[fed - 1], options.decode_tokens);
    std::sort(times.begin(), times.end());
    const double p50 = times[times.size() / 2], p99 = times[(times.size() * 99) / 100];
    const mneme::bench::Traffic traffic =
        mneme::bench::decode_traffic(file, params, session.position(), session.memory().stats().units);
    const double rate = static_cast<double>(traffic.total()) / p50 * 1e-9;
    std::printf("%10lld %10.0f %8.3f %8.3f %8.1f %7.0fMB %6.0fMB %7.0fMB %8.1f %7.1f%%\n", static_cast<long long>(rung),
                prefill_rate, p50 * 1e3, p99 * 1e3, 1 / p50, static_cast<double>(traffic.weights) * 1e-6,
                static_cast<double>(traffic.keys_and_values) * 1e-6, static_cast<double>(traffic.selection) * 1e-6,
                rate, 100 * rate / ceiling);
    std::fflush(stdout);
    const std::string suffix = "_" + std::to_string(rung) + "=";
    pairs += " prefill_tps" + suffix + std::to_string(std::lround(prefill_rate)) + " decode_p50_us" + suffix +
             std::to_string(std::lround(p50 * 1e6)) + " decode_p99_us" + suffix +
             std::to_string(std::lround(p99 * 1e6)) + " decode_ceiling_percent" + suffix +
             std::to_string(std::lround(100 * rate / ceiling));
  }
  const memory::MemoryStats stats = session.memory().stats();
  std::printf("device_mib=%zu host_mib=%zu device_hits=%llu host_hits=%llu store_reads=%llu%s\n",
              stats.device_bytes >> 20U, stats.host_bytes >> 20U, static_cast<unsigned long long>(stats.device_hits),
              static_cast<unsigned long long>(stats.host_hits), static_cast<unsigned long long>(stats.store_reads),
              pairs.c_str());
  return 0;
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const auto device = make_device(options);
  const auto file = model::ModelFile::load(options.model);
  model::Transformer transformer(*device, file, device->info().pass_tokens);
  const std::vector<model::TokenId> tokens = read_tokens(*file, options.text, options.n_tokens.back());
  std::printf("device: %s\n", device->info().name.c_str());
  return options.what == "ladder" ? run_ladder(options, transformer, tokens)
                                  : run_repeated(options, transformer, tokens);
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
