// Votes over units, index scans, rotation and conversion: the generic vector bodies of the table in memory_kernels.hpp.
// Include inside the namespace of one ISA, after attention.inl.hpp. Lengths that are no multiple of the vector width
// end in a plain loop over the last elements.

template <KvType Type>
inline vf load_vector(const void* x, std::int64_t i) {
  if constexpr (Type == KvType::f32) {
    return vload(static_cast<const float*>(x) + i);
  } else if constexpr (Type == KvType::f16) {
    return vload_f16(static_cast<const std::uint16_t*>(x) + i);
  } else {
    return vload_i8(static_cast<const std::int8_t*>(x) + i);
  }
}

template <KvType Type>
inline float load_scalar(const void* x, std::int64_t i) {
  if constexpr (Type == KvType::f32) {
    return static_cast<const float*>(x)[i];
  } else if constexpr (Type == KvType::f16) {
    return f16_to_f32(static_cast<const std::uint16_t*>(x)[i]);
  } else {
    return static_cast<float>(static_cast<const std::int8_t*>(x)[i]);
  }
}

// ---- votes; n is a multiple of 32

inline void max_in_place(const float* values, int n, float* best) {
  for (int i = 0; i < n; i += kWidth) {
    const vf sofar = vload(best + i);
    // vmax gives its second operand if either is NaN: a NaN in `values` is kept here, one in `best` by the replacement.
    const vf larger = vmax(sofar, vload(values + i));
    vstore(best + i, vkeep_nan(larger, sofar));
  }
}

inline RowStat vote_stat(float* x, int n) {
  const float lowest = -float_from_bits(0x7F800000u);
  vf largest = vset(lowest);
  for (int i = 0; i < n; i += kWidth) {
    const vf value = vreplace_nan(vload(x + i), vset(lowest));
    vstore(x + i, value);
    largest = vmax(value, largest);
  }
  const float m = vmax_lane(largest);
  if (m == lowest) return {m, 0.0f};
  vf sum = vzero();
  for (int i = 0; i < n; i += kWidth) sum = vadd(sum, vexp2(vsub(vload(x + i), vset(m))));
  return {m, vsum(sum)};
}

inline void add_votes(const float* x, int n, float lse, float* sum) {
  for (int i = 0; i < n; i += kWidth) {
    vstore(sum + i, vadd(vload(sum + i), vexp2(vsub(vload(x + i), vset(lse)))));
  }
}

// ---- index scan

// Four vectors of partial sums, added pairwise, then across lanes.
template <KvType Type>
inline float dot_row(const float* a, const void* row, int n) {
  vf acc[4] = {vzero(), vzero(), vzero(), vzero()};
  int i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      acc[k] = vfma(vload(a + i + k * kWidth), load_vector<Type>(row, i + k * kWidth), acc[k]);
  }
  for (; i + kWidth <= n; i += kWidth) acc[0] = vfma(vload(a + i), load_vector<Type>(row, i), acc[0]);
  float sum = vsum(vadd(vadd(acc[0], acc[1]), vadd(acc[2], acc[3])));
  for (; i < n; ++i) sum += a[i] * load_scalar<Type>(row, i);
  return sum;
}

inline void dot_rows(const float* a, KvType type, const void* rows, int n_rows, int n, float* out) {
  const auto stride = static_cast<std::int64_t>(n) * static_cast<std::int64_t>(element_bytes(type));
  for (int r = 0; r < n_rows; ++r) {
    const void* row = static_cast<const char*>(rows) + r * stride;
    out[r] = type == KvType::f16 ? dot_row<KvType::f16>(a, row, n) : dot_row<KvType::f32>(a, row, n);
  }
}

// ---- keys

inline void rotate(const float* x, int head_dim, const float* cos, const float* sin, float* out) {
  const int half = head_dim / 2;
  int j = 0;
  for (; j + kWidth <= half; j += kWidth) {
    const vf a = vload(x + j), b = vload(x + j + half);
    const vf c = vload(cos + j), s = vload(sin + j);
    vstore(out + j, vfnma(b, s, vmul(a, c)));
    vstore(out + j + half, vfma(b, c, vmul(a, s)));
  }
  for (; j < half; ++j) {
    const float a = x[j], b = x[j + half];
    out[j] = a * cos[j] - b * sin[j];
    out[j + half] = a * sin[j] + b * cos[j];
  }
}

template <KvType Type>
inline void widen_as(const void* x, const std::uint16_t* scales, int n, float* out) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const vf value = load_vector<Type>(x, i);
    vstore(out + i, Type == KvType::q8 ? vmul(value, vload_f16(scales + i)) : value);
  }
  for (; i < n; ++i) out[i] = load_scalar<Type>(x, i) * (Type == KvType::q8 ? f16_to_f32(scales[i]) : 1.0f);
}

inline void widen(KvType type, const void* x, const std::uint16_t* scales, int n, float* out) {
  switch (type) {
    case KvType::f32:
      return widen_as<KvType::f32>(x, scales, n, out);
    case KvType::f16:
      return widen_as<KvType::f16>(x, scales, n, out);
    case KvType::q8:
      return widen_as<KvType::q8>(x, scales, n, out);
  }
}

inline void narrow(const float* x, int n, KvType type, void* out) {
  int i = 0;
  if (type == KvType::f32) {
    std::memcpy(out, x, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  auto* to = static_cast<std::uint16_t*>(out);
  for (; i + kWidth <= n; i += kWidth) vstore_f16(to + i, vload(x + i));
  for (; i < n; ++i) to[i] = f32_to_f16(x[i]);
}
