#include "gpu/host/isa.hpp"

#include <cstdlib>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <string>

namespace mneme::gpu::host {
namespace {

Isa parse(std::string_view text, std::string_view origin) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (text == name(isa)) return isa;
  }
  throw Error(errc::invalid_argument,
              std::string(origin) + " " + excerpt(text) + " is not an instruction set; use scalar, avx2 or avx512");
}

}  // namespace

std::string_view name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "";
}

Isa best_isa() noexcept {
#if defined(__x86_64__)
  // The builtins look at xgetbv too: a feature counts only if the system saves its registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::scalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                      __builtin_cpu_supports("avx512vbmi");
  return avx512 ? Isa::avx512 : Isa::avx2;
#else
  return Isa::scalar;
#endif
}

Isa choose_isa(std::string_view requested) {
  const char* environment = std::getenv("MNEME_ISA");
  Isa isa = best_isa();
  if (!requested.empty()) {
    isa = parse(requested, "the option isa:");
  } else if (environment != nullptr && *environment != '\0') {
    isa = parse(environment, "the environment variable MNEME_ISA:");
  }
  if (isa > best_isa()) {
    throw Error(errc::invalid_argument, "the instruction set " + std::string(name(isa)) +
                                            " was asked for, but this CPU has at most " +
                                            std::string(name(best_isa())));
  }
  return isa;
}

}  // namespace mneme::gpu::host
