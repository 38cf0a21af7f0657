// Sixteen lanes in plain C++: the readable definition of what the vector versions do.
// Included inside a namespace by linear_scalar.cpp; <bit>, <cmath>, <cstring> and quant_blocks.hpp before it.

constexpr std::size_t kPackColumns = 4;
constexpr std::size_t kTileColumns = 12;
constexpr std::size_t kF32Columns = 4;
constexpr std::size_t kColumnGroups = 1;
constexpr int kSignedOffset = -1;  // Dot takes signed bytes as they are

struct F32x16 {
  float lane[16];
};
struct I32x16 {
  std::int32_t lane[16];
};
struct U8x64 {  // 16 rows of 4 bytes
  std::uint8_t byte[64];
};
struct F64x8 {
  double lane[8];
};

#define MNEME_LANES(n) for (int i = 0; i < (n); ++i)

MNEME_INLINE F32x16 set1(float value) {
  F32x16 r;
  MNEME_LANES(16) r.lane[i] = value;
  return r;
}
MNEME_INLINE F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
MNEME_INLINE void store(F32x16 a, float* p) {
  std::memcpy(p, a.lane, sizeof a.lane);
}
MNEME_INLINE F32x16 add(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] += b.lane[i];
  return a;
}
MNEME_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] -= b.lane[i];
  return a;
}
MNEME_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] *= b.lane[i];
  return a;
}
MNEME_INLINE F32x16 div(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] /= b.lane[i];
  return a;
}
MNEME_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  MNEME_LANES(16) c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}
// The second operand where the first is NaN, as minps and maxps.
MNEME_INLINE F32x16 min(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
MNEME_INLINE F32x16 max(F32x16 a, F32x16 b) {
  MNEME_LANES(16) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
MNEME_INLINE F32x16 to_f32(I32x16 a) {
  F32x16 r;
  MNEME_LANES(16) r.lane[i] = static_cast<float>(a.lane[i]);
  return r;
}
// To nearest even; what does not fit (and NaN) gives INT32_MIN.
MNEME_INLINE I32x16 to_i32(F32x16 a) {
  I32x16 r;
  MNEME_LANES(16) {
    const float x = a.lane[i];
    if (!(x > -2147483648.0f && x < 2147483648.0f)) {
      r.lane[i] = INT32_MIN;
    } else {
      auto whole = static_cast<std::int32_t>(x);
      const float rest = x - static_cast<float>(whole);
      if (rest > 0.5f || (rest == 0.5f && whole % 2 != 0)) ++whole;
      if (rest < -0.5f || (rest == -0.5f && whole % 2 != 0)) --whole;
      r.lane[i] = whole;
    }
  }
  return r;
}
MNEME_INLINE I32x16 bits(F32x16 a) {
  I32x16 r;
  std::memcpy(r.lane, a.lane, sizeof r.lane);
  return r;
}
MNEME_INLINE F32x16 from_bits(I32x16 a) {
  F32x16 r;
  std::memcpy(r.lane, a.lane, sizeof r.lane);
  return r;
}
MNEME_INLINE I32x16 iset1(std::int32_t value) {
  I32x16 r;
  MNEME_LANES(16) r.lane[i] = value;
  return r;
}
MNEME_INLINE I32x16 iadd(I32x16 a, I32x16 b) {
  MNEME_LANES(16) a.lane[i] += b.lane[i];
  return a;
}
MNEME_INLINE I32x16 isub(I32x16 a, I32x16 b) {
  MNEME_LANES(16) a.lane[i] -= b.lane[i];
  return a;
}
MNEME_INLINE I32x16 iand(I32x16 a, I32x16 b) {
  MNEME_LANES(16) a.lane[i] &= b.lane[i];
  return a;
}
MNEME_INLINE I32x16 imin(I32x16 a, I32x16 b) {
  MNEME_LANES(16) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
MNEME_INLINE I32x16 imax(I32x16 a, I32x16 b) {
  MNEME_LANES(16) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
template <int kBits>
MNEME_INLINE I32x16 ishl(I32x16 a) {
  MNEME_LANES(16) a.lane[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.lane[i]) << kBits);
  return a;
}
MNEME_INLINE std::int32_t reduce_max(I32x16 a) {
  std::int32_t r = a.lane[0];
  MNEME_LANES(16) r = r > a.lane[i] ? r : a.lane[i];
  return r;
}
MNEME_INLINE std::int32_t reduce_add(I32x16 a) {
  std::int32_t r = 0;
  MNEME_LANES(16) r += a.lane[i];
  return r;
}
// The 16 lanes, each in [-128, 127], as bytes.
MNEME_INLINE void store_i8(I32x16 a, std::int8_t* p) {
  MNEME_LANES(16) p[i] = static_cast<std::int8_t>(a.lane[i]);
}

MNEME_INLINE F32x16 load_f16(const std::byte* p) {
  std::uint16_t half[16];
  std::memcpy(half, p, sizeof half);
  F32x16 r;
  MNEME_LANES(16) r.lane[i] = f16_to_f32(half[i]);
  return r;
}
MNEME_INLINE F32x16 load_bf16(const std::byte* p) {
  std::uint16_t half[16];
  std::memcpy(half, p, sizeof half);
  F32x16 r;
  MNEME_LANES(16) r.lane[i] = bf16_to_f32(half[i]);
  return r;
}
MNEME_INLINE I32x16 load_u8(const std::byte* p) {
  I32x16 r;
  MNEME_LANES(16) r.lane[i] = static_cast<std::uint8_t>(p[i]);
  return r;
}
MNEME_INLINE I32x16 load_i8(const std::byte* p) {
  I32x16 r;
  MNEME_LANES(16) r.lane[i] = static_cast<std::int8_t>(p[i]);
  return r;
}

MNEME_INLINE U8x64 load_bytes(const std::byte* p) {
  U8x64 r;
  std::memcpy(r.byte, p, sizeof r.byte);
  return r;
}
MNEME_INLINE void store_bytes(U8x64 a, std::byte* p) {
  std::memcpy(p, a.byte, sizeof a.byte);
}
MNEME_INLINE U8x64 bytes_or(U8x64 a, U8x64 b) {
  MNEME_LANES(64) a.byte[i] |= b.byte[i];
  return a;
}
// Each byte shifted left (negative: right), then masked. The mask has no bit that the shift would bring from another
// byte.
template <int kLeft, int kMask>
MNEME_INLINE U8x64 shift_and(U8x64 a) {
  MNEME_LANES(64) {
    a.byte[i] = static_cast<std::uint8_t>((kLeft >= 0 ? a.byte[i] << (kLeft & 7) : a.byte[i] >> (-kLeft & 7)) & kMask);
  }
  return a;
}
// Byte kIndex of each row, zero- or sign-extended.
template <int kIndex>
MNEME_INLINE I32x16 row_byte(U8x64 a) {
  I32x16 r;
  MNEME_LANES(16) r.lane[i] = a.byte[4 * i + kIndex];
  return r;
}
template <int kIndex>
MNEME_INLINE I32x16 row_byte_signed(U8x64 a) {
  I32x16 r;
  MNEME_LANES(16) r.lane[i] = static_cast<std::int8_t>(a.byte[4 * i + kIndex]);
  return r;
}

MNEME_INLINE F64x8 zero_f64() {
  return {};
}
MNEME_INLINE F64x8 add_squares(F64x8 sum, const float* x) {
  MNEME_LANES(8) sum.lane[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}
MNEME_INLINE void store_f64(F64x8 a, double* p) {
  std::memcpy(p, a.lane, sizeof a.lane);
}

// t[c][row] = sum over the added vectors of w[row][4] * q[c][4], exact. kRun: how many products of unsigned weights fit
// into 16 bits (not needed here); 0: the weights are signed bytes. The vectors come as kIndex = 0, 1, ...
template <int kRun, int kColumns>
struct Dot {
  I32x16 t[kColumns];

  template <int kIndex>
  MNEME_INLINE_MEMBER void add(const U8x64& w, const std::int32_t* q) {
    for (int c = 0; c < kColumns; ++c) {
      if (kIndex == 0) t[c] = iset1(0);
      std::int8_t x[4];
      std::memcpy(x, q + c, 4);
      MNEME_LANES(64) t[c].lane[i / 4] += weight(w.byte[i]) * x[i % 4];
    }
  }

 private:
  static MNEME_INLINE_MEMBER int weight(std::uint8_t byte) { return kRun == 0 ? static_cast<std::int8_t>(byte) : byte; }
};

MNEME_INLINE const std::byte* as_memory(const std::byte* block) {
  return block;
}
