// The kernels of the including instruction set (kIsa, after its lanes_*.inl.hpp) and their table.

// Each of these builds on the ones before.
// clang-format off
#include "gpu/host/kernels/linear_types.inl.hpp"
#include "gpu/host/kernels/linear_int8.inl.hpp"
#include "gpu/host/kernels/linear_f32.inl.hpp"
#include "gpu/host/kernels/linear_rows.inl.hpp"
// clang-format on

constexpr LinearKernels kTable = {
    .isa = kIsa,
    .pack_columns = kPackColumns,
    .tile_columns = kTileColumns,
    .quantise = quantise,
    .int8_tile = {nullptr, nullptr, nullptr, nullptr, int8_tile<DType::q8_0>, int8_tile<DType::q4_0>,
                  int8_tile<DType::q4_1>, int8_tile<DType::q5_0>, int8_tile<DType::q5_1>, int8_tile<DType::q4_k>,
                  int8_tile<DType::q5_k>, int8_tile<DType::q6_k>},
    .int8_column = {nullptr, nullptr, nullptr, nullptr, int8_column<DType::q8_0>, int8_column<DType::q4_0>,
                    int8_column<DType::q4_1>, int8_column<DType::q5_0>, int8_column<DType::q5_1>,
                    int8_column<DType::q4_k>, int8_column<DType::q5_k>, int8_column<DType::q6_k>},
    .normalise = normalise,
    .rms_scale = rms_scale,
    .panel = {nullptr, float_panel<ElementF32>, float_panel<ElementF16>, float_panel<ElementBf16>,
              quantised_panel<DType::q8_0>, quantised_panel<DType::q4_0>, quantised_panel<DType::q4_1>,
              quantised_panel<DType::q5_0>, quantised_panel<DType::q5_1>, quantised_panel<DType::q4_k>,
              quantised_panel<DType::q5_k>, quantised_panel<DType::q6_k>},
    .f32_tile = f32_tile,
    .f32_column = {nullptr, float_column<ElementF32>, float_column<ElementF16>, float_column<ElementBf16>,
                   quantised_column<DType::q8_0>, quantised_column<DType::q4_0>, quantised_column<DType::q4_1>,
                   quantised_column<DType::q5_0>, quantised_column<DType::q5_1>, quantised_column<DType::q4_k>,
                   quantised_column<DType::q5_k>, quantised_column<DType::q6_k>},
    .store = store_out,
    .add = add_out,
    .glu = glu_out,
};
static_assert(slot(DType::f32) == 1 && slot(DType::q8_0) == 4 && slot(DType::q6_k) == 11 && kTypeSlots == 12);
static_assert(kTileColumns % kPackColumns == 0);
