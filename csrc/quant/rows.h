// The functions that the table of types.cpp is made of, one pair per type that can be decoded, and what their files
// share: unaligned little-endian loads. Private to quant/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace ld::quant {

#define LD_QUANT_ROW(name)                                   \
  void decode_##name(const void* src, float* dst, size_t n); \
  bool finite_##name(const void* src, size_t n)

LD_QUANT_ROW(f32);
LD_QUANT_ROW(f16);
LD_QUANT_ROW(bf16);
LD_QUANT_ROW(q4_0);
LD_QUANT_ROW(q4_1);
LD_QUANT_ROW(q5_0);
LD_QUANT_ROW(q5_1);
LD_QUANT_ROW(q8_0);
LD_QUANT_ROW(q2_k);
LD_QUANT_ROW(q3_k);
LD_QUANT_ROW(q4_k);
LD_QUANT_ROW(q5_k);
LD_QUANT_ROW(q6_k);
LD_QUANT_ROW(iq4_nl);
LD_QUANT_ROW(iq4_xs);
LD_QUANT_ROW(mxfp4);
#undef LD_QUANT_ROW

static inline uint16_t load_u16(const uint8_t* at) {
  uint16_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static inline float load_half(const uint8_t* at) { return half_to_float(load_u16(at)); }

static inline bool half_is_finite(const uint8_t* at) { return (load_u16(at) & 0x7c00) != 0x7c00; }

// Whether the half at each given offset of every block is finite.
template <class... Offsets>
bool halves_finite(const void* src, size_t blocks, size_t block_bytes, Offsets... offsets) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t i = 0; i < blocks; ++i, block += block_bytes) {
    if (!(half_is_finite(block + offsets) && ...)) return false;
  }
  return true;
}

}  // namespace ld::quant
