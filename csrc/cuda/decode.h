// Blocks of the GGUF types read on the device as they lie in the file (quant/ describes the formats): four neighbouring
// integers at a time with the scale and minimum that they share, or eight values as float32, the same that quant/ decodes.
// value = scale * integer + minimum; every integer fits a signed byte.
#pragma once

#include "cuda/runtime.h"
#include "quant/types.h"

namespace ld::cuda {

__device__ inline float half_at(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, __builtin_assume_aligned(p, 2), 2);
  return half_value(bits);
}

// Four bytes of a block of kBytes, which says how they are aligned in a row of blocks, at an offset that is.
template <int kBytes>
__device__ inline uint32_t word_at(const uint8_t* p) {
  if constexpr (kBytes % 4 == 0) {
    uint32_t word;
    memcpy(&word, __builtin_assume_aligned(p, 4), 4);
    return word;
  } else if constexpr (kBytes % 2 == 0) {
    uint16_t halves[2];
    memcpy(&halves[0], __builtin_assume_aligned(p, 2), 2);
    memcpy(&halves[1], __builtin_assume_aligned(p + 2, 2), 2);
    return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  } else {
    return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
  }
}

// Subtracts kOffset, 1 to 127, from four bytes below 128 each.
template <int kOffset>
__device__ inline uint32_t centred(uint32_t four) {
  return ((four | 0x80808080u) - 0x01010101u * kOffset) ^ 0x80808080u;
}

// Four bits as the lowest ones of four bytes.
__device__ inline uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// Sixteen bytes to look up, eight in a word: an array would lie in local memory.
struct Book {
  uint64_t low = 0, high = 0;
  constexpr Book(const int8_t (&bytes)[16]) {
    for (int i = 0; i < 8; ++i) {
      low |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << 8 * i;
      high |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i + 8])) << 8 * i;
    }
  }
  __device__ uint32_t at(uint32_t i) const { return static_cast<uint32_t>((i & 8 ? high : low) >> (i & 7) * 8) & 255; }
};

__device__ inline uint32_t looked_up(const Book& book, uint32_t four) {
  uint32_t found = 0;
  for (int j = 0; j < 4; ++j) found |= book.at(four >> 8 * j & 15) << 8 * j;
  return found;
}

// ---- floats ----

struct F32 {
  static constexpr bool kInteger = false;
  static constexpr int kBlock = 8, kBytes = 32;
  __device__ static void eight(const uint8_t* p, int, float* out) { memcpy(out, p, 32); }
};

struct F16 {
  static constexpr bool kInteger = false;
  static constexpr int kBlock = 8, kBytes = 16;
  __device__ static void eight(const uint8_t* p, int, float* out) {
    for (int j = 0; j < 8; ++j) out[j] = half_at(p + 2 * j);
  }
};

struct BF16 {
  static constexpr bool kInteger = false;
  static constexpr int kBlock = 8, kBytes = 16;
  __device__ static void eight(const uint8_t* p, int, float* out) {
    for (int j = 0; j < 8; ++j) out[j] = float_from_bits(static_cast<uint32_t>(p[2 * j] | p[2 * j + 1] << 8) << 16);
  }
};

// ---- blocks of 32 ----

// kSpan values share a scale; where kMinimum, also a minimum. kReach as PackedTraits::reach of cpu/gemm.h, whose integers
// are 2^kWide times as large, and scales as small.
template <int kBlock_, int kBytes_, int kReach_, int kSpan_ = 32, bool kMinimum_ = false, int kWide_ = 0>
struct Blocks {
  static constexpr bool kInteger = true, kMinimum = kMinimum_;
  static constexpr int kBlock = kBlock_, kBytes = kBytes_, kSpan = kSpan_, kReach = kReach_, kWide = kWide_;
  __device__ static uint32_t word(const uint8_t* p) { return word_at<kBytes>(p); }
  // Values i to i + 3 of 32 that are nibbles: the low half of byte i, the high half of byte i - 16.
  __device__ static uint32_t nibbles(const uint8_t* packed, int i) {
    return word(packed + i % 16) >> (i / 16 * 4) & 0x0f0f0f0fu;
  }
  __device__ static float minimum(const uint8_t*, int) { return 0; }
};

struct Q8_0 : Blocks<32, 34, 8> {
  __device__ static uint32_t four(const uint8_t* p, int i) { return word(p + 2 + i); }
  __device__ static float scale(const uint8_t* p, int) { return half_at(p); }
};

// Q4_0, Q4_1, Q5_0 and Q5_1.
template <int kBits, bool kMinimum>
struct Simple : Blocks<32, 18 + (kMinimum ? 2 : 0) + (kBits == 5 ? 4 : 0), kBits, 32, kMinimum> {
  using Base = Blocks<32, 18 + (kMinimum ? 2 : 0) + (kBits == 5 ? 4 : 0), kBits, 32, kMinimum>;
  static constexpr int kHigh = kMinimum ? 4 : 2, kLow = kHigh + (kBits == 5 ? 4 : 0);
  __device__ static uint32_t four(const uint8_t* p, int i) {
    uint32_t q = Base::nibbles(p + kLow, i);
    if (kBits == 5) q |= spread(p[kHigh + i / 8] >> i % 8) << 4;
    if constexpr (kMinimum) return q;
    return centred<1 << (kBits - 1)>(q);
  }
  __device__ static float scale(const uint8_t* p, int) { return half_at(p); }
  __device__ static float minimum(const uint8_t* p, int) { return kMinimum ? half_at(p + 2) : 0; }
};

// The codebook of IQ4_NL and IQ4_XS.
__device__ inline uint32_t coded(uint32_t four) {
  constexpr Book kBook({-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});
  return looked_up(kBook, four);
}

struct IQ4_NL : Blocks<32, 18, 8> {
  __device__ static uint32_t four(const uint8_t* p, int i) { return coded(nibbles(p + 2, i)); }
  __device__ static float scale(const uint8_t* p, int) { return half_at(p); }
};

struct MXFP4 : Blocks<32, 17, 8, 32, false, 3> {
  __device__ static uint32_t four(const uint8_t* p, int i) {
    constexpr Book kBook({0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12});
    return looked_up(kBook, nibbles(p + 1, i));
  }
  __device__ static float scale(const uint8_t* p, int) {
    return float_from_bits(p[0] < 2 ? 0x00200000u << p[0] : static_cast<uint32_t>(p[0] - 1) << 23);
  }
};

// ---- super-blocks of 256 ----

struct Q2_K : Blocks<256, 84, 2, 16, true> {
  __device__ static uint32_t four(const uint8_t* p, int i) {
    return word(p + 16 + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2) & 0x03030303u;
  }
  __device__ static float scale(const uint8_t* p, int i) {
    return half_at(p + 80) * static_cast<float>(p[i / 16] & 15);
  }
  __device__ static float minimum(const uint8_t* p, int i) {
    return -(half_at(p + 82) * static_cast<float>(p[i / 16] >> 4));
  }
};

struct Q3_K : Blocks<256, 110, 3, 16> {
  __device__ static uint32_t four(const uint8_t* p, int i) {
    const uint32_t low = word(p + 32 + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2) & 0x03030303u;
    const uint32_t third = word(p + i % 32) >> (i / 32) & 0x01010101u;
    return centred<4>(low | third << 2);
  }
  __device__ static float scale(const uint8_t* p, int i) {
    const int group = i / 16;
    const int code = (p[96 + group % 8] >> (group / 8 * 4) & 15) | (p[104 + group % 4] >> (group / 4 * 2) & 3) << 4;
    return half_at(p + 108) * static_cast<float>(code - 32);
  }
};

// Q4_K and Q5_K.
template <bool kFifth>
struct Grouped : Blocks<256, kFifth ? 176 : 144, kFifth ? 5 : 4, 32, true> {
  using Base = Blocks<256, kFifth ? 176 : 144, kFifth ? 5 : 4, 32, true>;
  static constexpr int kLow = kFifth ? 48 : 16;
  __device__ static uint32_t four(const uint8_t* p, int i) {
    const int group = i / 32;
    uint32_t q = Base::word(p + kLow + group / 2 * 32 + i % 32) >> (group % 2 * 4) & 0x0f0f0f0fu;
    if (kFifth) q |= (Base::word(p + 16 + i % 32) >> group & 0x01010101u) << 4;
    return q;
  }
  __device__ static float scale(const uint8_t* p, int i) {
    const int group = i / 32;
    const uint8_t* packed = p + 4;
    const int code = group < 4 ? packed[group] & 63 : (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
    return half_at(p) * static_cast<float>(code);
  }
  __device__ static float minimum(const uint8_t* p, int i) {
    const int group = i / 32;
    const uint8_t* packed = p + 4;
    const int code = group < 4 ? packed[group + 4] & 63 : packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    return -(half_at(p + 2) * static_cast<float>(code));
  }
};

struct Q6_K : Blocks<256, 210, 6, 16> {
  __device__ static uint32_t four(const uint8_t* p, int i) {
    const int group = i / 32, half = group / 4, quarter = group % 4, at = i % 32;
    const uint32_t low = word(p + half * 64 + quarter % 2 * 32 + at) >> (quarter / 2 * 4) & 0x0f0f0f0fu;
    const uint32_t high = word(p + 128 + half * 32 + at) >> (quarter * 2) & 0x03030303u;
    return centred<32>(low | high << 4);
  }
  __device__ static float scale(const uint8_t* p, int i) {
    return half_at(p + 208) * static_cast<float>(static_cast<int8_t>(p[192 + i / 16]));
  }
};

struct IQ4_XS : Blocks<256, 136, 8> {
  __device__ static uint32_t four(const uint8_t* p, int i) { return coded(nibbles(p + 8 + i / 32 * 16, i % 32)); }
  __device__ static float scale(const uint8_t* p, int i) {
    const int group = i / 32, upper = p[2] | p[3] << 8;
    const int code = (p[4 + group / 2] >> (group % 2 * 4) & 15) | (upper >> 2 * group & 3) << 4;
    return half_at(p) * static_cast<float>(code - 32);
  }
};

// Calls use.template operator()<Format>() for a tensor type; false where the device does not run it.
template <class Use>
bool with_format(TensorType type, Use use) {
  switch (type) {
#define LD_FORMAT(name, ...) \
  case TensorType::name:     \
    return use.template operator()<__VA_ARGS__>(), true
    LD_FORMAT(f32, F32);
    LD_FORMAT(f16, F16);
    LD_FORMAT(bf16, BF16);
    LD_FORMAT(q8_0, Q8_0);
    LD_FORMAT(q4_0, Simple<4, false>);
    LD_FORMAT(q4_1, Simple<4, true>);
    LD_FORMAT(q5_0, Simple<5, false>);
    LD_FORMAT(q5_1, Simple<5, true>);
    LD_FORMAT(q2_k, Q2_K);
    LD_FORMAT(q3_k, Q3_K);
    LD_FORMAT(q4_k, Grouped<false>);
    LD_FORMAT(q5_k, Grouped<true>);
    LD_FORMAT(q6_k, Q6_K);
    LD_FORMAT(iq4_nl, IQ4_NL);
    LD_FORMAT(iq4_xs, IQ4_XS);
    LD_FORMAT(mxfp4, MXFP4);
#undef LD_FORMAT
    default:
      return false;
  }
}

inline bool is_float(TensorType type) {
  return type == TensorType::f32 || type == TensorType::f16 || type == TensorType::bf16;
}

inline bool has_format(TensorType type) {
  return with_format(type, [&]<class Format>() { static_assert(Format::kBytes > 0); });
}

template <class Format>
__device__ inline void eight(const uint8_t* p, int i, float* out) {
  if constexpr (Format::kInteger) {
    const float scale = Format::scale(p, i), minimum = Format::minimum(p, i);
    for (int j = 0; j < 8; j += 4) {
      const uint32_t four = Format::four(p, i + j);
      for (int byte = 0; byte < 4; ++byte) {
        const float product = scale * static_cast<float>(static_cast<int8_t>(four >> 8 * byte));
        out[j + byte] = Format::kMinimum ? product + minimum : product;
      }
    }
  } else {
    Format::eight(p, i, out);
  }
}

// Eight values of a row from k on, a multiple of 8; the row has `columns` values, those past it are 0.
template <class Format>
__device__ inline void decode_eight(const uint8_t* row, int k, int columns, float* out) {
  if (Format::kBlock > 8 || k + 8 <= columns) {
    eight<Format>(row + static_cast<size_t>(k / Format::kBlock) * Format::kBytes, k % Format::kBlock, out);
    return;
  }
  constexpr int kValue = Format::kBytes / 8;  // floats only: their rows may have any length
  alignas(4) uint8_t part[32] = {};
  memcpy(part, row + static_cast<size_t>(k) * kValue, static_cast<size_t>(columns - k) * kValue);
  eight<Format>(part, 0, out);
}

}  // namespace ld::cuda
