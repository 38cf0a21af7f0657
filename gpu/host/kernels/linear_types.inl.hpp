// How each quantised type is unpacked from a group of 16 rows (layouts: linear_layout.hpp): one struct per type.
//
//   kRun        products of this type's weights with int8 that fit into 16 bits, for Dot; 0: signed bytes
//   kOffset     log2 of what is subtracted from u as Dot reads it; -1: nothing
//   kScales     one: y = a*(u - offset); min: y = a*u + c; two: one scale per 16 elements
//   pair<J>     vectors J and 4+J of the block: bytes u[row][4J..4J+3] and u[row][16+4J..16+4J+3]
// Included inside an instruction set's namespace.

enum class Scales { one, min, two };

// a: scale; second: the minimum c (Scales::min) or the scale of elements 16-31 (Scales::two)
struct BlockScales {
  F32x16 a, second;
};

template <DType kType>
struct Weights;

template <int kJ>
MNEME_INLINE void nibble_pair(const std::byte* plane, U8x64& low, U8x64& high) {
  const U8x64 both = load_bytes(plane + 64 * kJ);
  low = shift_and<0, 15>(both);
  high = shift_and<-4, 15>(both);
}

template <int kJ>
MNEME_INLINE void fifth_pair(const std::byte* plane, U8x64& low, U8x64& high) {
  nibble_pair<kJ>(plane, low, high);
  const U8x64 fifth = load_bytes(plane + kNibbleBytes);  // bit J: low, bit 4+J: high; wanted in bit 4
  low = bytes_or(low, shift_and<4 - kJ, 16>(fifth));
  high = bytes_or(high, shift_and<-kJ, 16>(fifth));
}

template <>
struct Weights<DType::q4_0> {
  static constexpr int kRun = 8, kOffset = 3;
  static constexpr Scales kScales = Scales::one;
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return group + b * (kNibbleBytes + kHalfScales);
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    nibble_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte*, std::size_t, const std::byte* at) {
    const F32x16 a = load_f16(at + kNibbleBytes);
    return {a, a};
  }
};

template <>
struct Weights<DType::q4_1> {
  static constexpr int kRun = 8, kOffset = -1;
  static constexpr Scales kScales = Scales::min;
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return group + b * (kNibbleBytes + 2 * kHalfScales);
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    nibble_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte*, std::size_t, const std::byte* at) {
    return {load_f16(at + kNibbleBytes), load_f16(at + kNibbleBytes + kHalfScales)};
  }
};

template <>
struct Weights<DType::q5_0> {
  static constexpr int kRun = 4, kOffset = 4;
  static constexpr Scales kScales = Scales::one;
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return group + b * (kNibbleBytes + kFifthBytes + kHalfScales);
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    fifth_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte*, std::size_t, const std::byte* at) {
    const F32x16 a = load_f16(at + kNibbleBytes + kFifthBytes);
    return {a, a};
  }
};

template <>
struct Weights<DType::q5_1> {
  static constexpr int kRun = 4, kOffset = -1;
  static constexpr Scales kScales = Scales::min;
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return group + b * (kNibbleBytes + kFifthBytes + 2 * kHalfScales);
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    fifth_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte*, std::size_t, const std::byte* at) {
    return {load_f16(at + kNibbleBytes + kFifthBytes), load_f16(at + kNibbleBytes + kFifthBytes + kHalfScales)};
  }
};

template <>
struct Weights<DType::q8_0> {
  static constexpr int kRun = 0, kOffset = kSignedOffset;
  static constexpr Scales kScales = Scales::one;
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return group + b * (kByteBytes + kHalfScales);
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    low = load_bytes(at + 64 * kJ);
    high = load_bytes(at + 64 * (4 + kJ));
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte*, std::size_t, const std::byte* at) {
    const F32x16 a = load_f16(at + kByteBytes);
    return {a, a};
  }
};

// Scale and minimum of a sub-block of Q4_K or Q5_K: a = d*scale and c = -(dmin*min), both exact in f32.
MNEME_INLINE BlockScales k_scales(const std::byte* super, const std::byte* bytes) {
  const F32x16 a = mul(load_f16(super), to_f32(load_u8(bytes)));
  const F32x16 m = mul(load_f16(super + kHalfScales), to_f32(load_u8(bytes + kByteScales)));
  return {a, mul(m, set1(-1.0f))};
}

template <>
struct Weights<DType::q4_k> {
  static constexpr int kRun = 8, kOffset = -1;
  static constexpr Scales kScales = Scales::min;
  static MNEME_INLINE_MEMBER const std::byte* super(const std::byte* group, std::size_t b) {
    return group + b / 8 * (kQ4KHead + 8 * kQ4KSub);
  }
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return super(group, b) + kQ4KHead + b % 8 * kQ4KSub;
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    nibble_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte* group, std::size_t b, const std::byte* at) {
    return k_scales(super(group, b), at + kNibbleBytes);
  }
};

template <>
struct Weights<DType::q5_k> {
  static constexpr int kRun = 4, kOffset = -1;
  static constexpr Scales kScales = Scales::min;
  static MNEME_INLINE_MEMBER const std::byte* super(const std::byte* group, std::size_t b) {
    return group + b / 8 * (kQ4KHead + 8 * kQ5KSub);
  }
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return super(group, b) + kQ4KHead + b % 8 * kQ5KSub;
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    fifth_pair<kJ>(at, low, high);
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte* group, std::size_t b, const std::byte* at) {
    return k_scales(super(group, b), at + kNibbleBytes + kFifthBytes);
  }
};

template <>
struct Weights<DType::q6_k> {
  static constexpr int kRun = 2, kOffset = 5;
  static constexpr Scales kScales = Scales::two;
  static MNEME_INLINE_MEMBER const std::byte* super(const std::byte* group, std::size_t b) {
    return group + b / 8 * (kQ6KHead + 8 * kQ6KSub);
  }
  static MNEME_INLINE_MEMBER const std::byte* block(const std::byte* group, std::size_t b) {
    return super(group, b) + kQ6KHead + b % 8 * kQ6KSub;
  }
  template <int kJ>
  static MNEME_INLINE_MEMBER void pair(const std::byte* at, U8x64& low, U8x64& high) {
    nibble_pair<kJ>(at, low, high);
    constexpr int kLeft = 4 - 2 * kJ;  // bits 2J and 2J+1 of the byte, wanted in bits 4 and 5
    low = bytes_or(low, shift_and<kLeft, 48>(load_bytes(at + kNibbleBytes)));
    high = bytes_or(high, shift_and<kLeft, 48>(load_bytes(at + kNibbleBytes + 64)));
  }
  static MNEME_INLINE_MEMBER BlockScales scales(const std::byte* group, std::size_t b, const std::byte* at) {
    const F32x16 d = load_f16(super(group, b));
    const std::byte* bytes = at + kNibbleBytes + kSixthBytes;
    return {mul(d, to_f32(load_i8(bytes))), mul(d, to_f32(load_i8(bytes + kByteScales)))};
  }
};
