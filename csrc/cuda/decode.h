// Blocks of the GGUF types decoded on the device, eight neighbouring values at a time, to the same float32 values as
// quant/ decodes (its files describe the formats). Rows are read as they lie in the file.
#pragma once

#include "cuda/runtime.h"
#include "quant/types.h"

namespace ld::cuda {

__device__ inline float half_at(const uint8_t* p) { return half_value(static_cast<uint16_t>(p[0] | p[1] << 8)); }

// ---- floats ----

struct F32 {
  static constexpr int kBlock = 8, kBytes = 32;
  __device__ static void eight(const uint8_t* p, int, float* out) { memcpy(out, p, 32); }
};

struct F16 {
  static constexpr int kBlock = 8, kBytes = 16;
  __device__ static void eight(const uint8_t* p, int, float* out) {
    for (int j = 0; j < 8; ++j) out[j] = half_at(p + 2 * j);
  }
};

struct BF16 {
  static constexpr int kBlock = 8, kBytes = 16;
  __device__ static void eight(const uint8_t* p, int, float* out) {
    for (int j = 0; j < 8; ++j) out[j] = float_from_bits(static_cast<uint32_t>(p[2 * j] | p[2 * j + 1] << 8) << 16);
  }
};

// ---- blocks of 32 ----

// Value i of 32 is the low half of byte i, value i + 16 the high half.
__device__ inline int nibble(const uint8_t* packed, int i) { return packed[i % 16] >> (i / 16 * 4) & 15; }

struct Q8_0 {
  static constexpr int kBlock = 32, kBytes = 34;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const float d = half_at(p);
    for (int j = 0; j < 8; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(p[2 + i + j]));
  }
};

// Q4_0, Q4_1, Q5_0 and Q5_1.
template <int kBits, bool kMinimum>
struct Simple {
  static constexpr int kHigh = kMinimum ? 4 : 2, kLow = kHigh + (kBits == 5 ? 4 : 0);
  static constexpr int kBlock = 32, kBytes = kLow + 16;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const float d = half_at(p), m = kMinimum ? half_at(p + 2) : 0;
    for (int j = 0; j < 8; ++j) {
      int q = nibble(p + kLow, i + j);
      if (kBits == 5) q |= (p[kHigh + (i + j) / 8] >> ((i + j) % 8) & 1) << 4;
      out[j] = kMinimum ? d * static_cast<float>(q) + m : d * static_cast<float>(q - (1 << (kBits - 1)));
    }
  }
};

__device__ inline int codebook(int q) {  // of IQ4_NL and IQ4_XS
  constexpr int8_t kBook[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kBook[q];
}

struct IQ4_NL {
  static constexpr int kBlock = 32, kBytes = 18;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const float d = half_at(p);
    for (int j = 0; j < 8; ++j) out[j] = d * static_cast<float>(codebook(nibble(p + 2, i + j)));
  }
};

struct MXFP4 {
  static constexpr int kBlock = 32, kBytes = 17;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    constexpr int8_t kBook[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const float d = float_from_bits(p[0] < 2 ? 0x00200000u << p[0] : static_cast<uint32_t>(p[0] - 1) << 23);
    for (int j = 0; j < 8; ++j) out[j] = d * static_cast<float>(kBook[nibble(p + 1, i + j)]);
  }
};

// ---- super-blocks of 256 ----

struct Q2_K {
  static constexpr int kBlock = 256, kBytes = 84;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const float scale = half_at(p + 80) * static_cast<float>(p[i / 16] & 15);
    const float minimum = half_at(p + 82) * static_cast<float>(p[i / 16] >> 4);
    for (int j = 0; j < 8; ++j) {
      const int q = p[16 + i / 128 * 32 + (i + j) % 32] >> (i % 128 / 32 * 2) & 3;
      out[j] = scale * static_cast<float>(q) - minimum;
    }
  }
};

struct Q3_K {
  static constexpr int kBlock = 256, kBytes = 110;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const int group = i / 16;
    const int code = (p[96 + group % 8] >> (group / 8 * 4) & 15) | (p[104 + group % 4] >> (group / 4 * 2) & 3) << 4;
    const float scale = half_at(p + 108) * static_cast<float>(code - 32);
    for (int j = 0; j < 8; ++j) {
      const int low = p[32 + i / 128 * 32 + (i + j) % 32] >> (i % 128 / 32 * 2) & 3;
      const int third = p[(i + j) % 32] >> (i / 32) & 1;
      out[j] = scale * static_cast<float>(low + 4 * third - 4);
    }
  }
};

// Q4_K and Q5_K.
template <bool kFifth>
struct Grouped {
  static constexpr int kLow = kFifth ? 48 : 16, kBlock = 256, kBytes = kLow + 128;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const int group = i / 32;
    const uint8_t* packed = p + 4;
    int scale_code, minimum_code;
    if (group < 4) {
      scale_code = packed[group] & 63;
      minimum_code = packed[group + 4] & 63;
    } else {
      scale_code = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
      minimum_code = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    }
    const float scale = half_at(p) * static_cast<float>(scale_code);
    const float minimum = half_at(p + 2) * static_cast<float>(minimum_code);
    for (int j = 0; j < 8; ++j) {
      int q = p[kLow + group / 2 * 32 + (i + j) % 32] >> (group % 2 * 4) & 15;
      if (kFifth) q |= (p[16 + (i + j) % 32] >> group & 1) << 4;
      out[j] = scale * static_cast<float>(q) - minimum;
    }
  }
};

struct Q6_K {
  static constexpr int kBlock = 256, kBytes = 210;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const int group = i / 32, half = group / 4, quarter = group % 4;
    const float scale = half_at(p + 208) * static_cast<float>(static_cast<int8_t>(p[192 + i / 16]));
    for (int j = 0; j < 8; ++j) {
      const int at = (i + j) % 32;
      const int low = p[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
      const int high = p[128 + half * 32 + at] >> (quarter * 2) & 3;
      out[j] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
};

struct IQ4_XS {
  static constexpr int kBlock = 256, kBytes = 136;
  __device__ static void eight(const uint8_t* p, int i, float* out) {
    const int group = i / 32;
    const int upper = p[2] | p[3] << 8;
    const int code = (p[4 + group / 2] >> (group % 2 * 4) & 15) | (upper >> 2 * group & 3) << 4;
    const float scale = half_at(p) * static_cast<float>(code - 32);
    for (int j = 0; j < 8; ++j) out[j] = scale * static_cast<float>(codebook(nibble(p + 8 + group * 16, i % 32 + j)));
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

inline bool has_format(TensorType type) {
  return with_format(type, [&]<class Format>() { static_assert(Format::kBytes > 0); });
}

// Eight values of a row from k on, a multiple of 8; the row has `columns` values, those past it are 0.
template <class Format>
__device__ inline void decode_eight(const uint8_t* row, int k, int columns, float* out) {
  if (Format::kBlock > 8 || k + 8 <= columns) {
    Format::eight(row + static_cast<size_t>(k / Format::kBlock) * Format::kBytes, k % Format::kBlock, out);
    return;
  }
  constexpr int kValue = Format::kBytes / 8;  // floats only: their rows may have any length
  uint8_t part[32] = {};
  memcpy(part, row + static_cast<size_t>(k) * kValue, static_cast<size_t>(columns - k) * kValue);
  Format::eight(part, 0, out);
}

}  // namespace ld::cuda
