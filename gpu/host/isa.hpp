// Which instruction set the host kernels use, chosen once at run time.
#pragma once

#include <string_view>

namespace mneme::gpu::host {

// scalar: plain C++, any CPU. avx2: AVX2, FMA, F16C. avx512: F, BW, DQ, VL, VNNI, BF16, VBMI besides.
enum class Isa { scalar, avx2, avx512 };

std::string_view name(Isa isa) noexcept;

// The best level that cpuid and xgetbv allow on this machine; scalar on other architectures.
Isa best_isa() noexcept;

// `requested` if not empty, else the environment variable MNEME_ISA, else best_isa(). Throws Error(invalid_argument)
// naming the value if it is unknown or this CPU lacks it.
Isa choose_isa(std::string_view requested);

}  // namespace mneme::gpu::host
