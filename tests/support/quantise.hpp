// Packs floats into the blocks of every weight type: a plain quantiser for generated test models.
#pragma once

#include <span>
#include <string>

#include "gpu/dtype.hpp"

namespace mneme::test {

// `values` as whole blocks of `type`, scales from the largest and smallest value of each (sub-)block. Requires: the
// number of values is a multiple of the block size.
std::string quantise(gpu::DType type, std::span<const float> values);

}  // namespace mneme::test
