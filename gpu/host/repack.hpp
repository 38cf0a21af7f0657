// From rows as in a model file to the groups of 16 rows of linear_layout.hpp.
#pragma once

#include <array>
#include <cstddef>

#include "gpu/dtype.hpp"
#include "gpu/host/linear_layout.hpp"

namespace mneme::gpu::host {

// The rows of a group as in the file; null rows are padding.
using GroupRows = std::array<const std::byte*, kGroupRows>;

// Writes one group. out: [group_bytes(type, n_in)], all bytes set; padding gives zeros. Requires: n_in is a multiple of
// the type's block size.
void repack_group(DType type, const GroupRows& rows, std::size_t n_in, std::byte* out) noexcept;

}  // namespace mneme::gpu::host
