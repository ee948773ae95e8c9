// Matrix products for ARM processors with the 8-bit matrix extension. smmla multiplies 2 rows x 8 values of k by 2
// channels x 8 values of k: twice the products of sdot. A panel is 16 channels; unpacking interleaves them to
// [k / 8][kPanel / 2][2][8], input rows are paired in registers. Tiles are 6 rows: 24 sums of 2 x 2, three pairs of
// inputs and weights. Signed bytes on both sides, as in the sdot row. An odd last row is paired with itself.
// Not here: float16 and bfloat16 arithmetic (products are float32).
#include <arm_neon.h>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 16;
constexpr int kInt8Rows = 6;
constexpr int kDepth = 8;  // values of k of a channel that lie side by side in a chunk
constexpr int kFloatRows = 4;

#include "cpu/gemm_neon.inl"

// 8 values of k of 4 channels, from two steps of 4 values: [channel][8].
inline void store_interleaved(uint8_t* out, uint8x16_t first, uint8x16_t second) {
  const uint32x4_t a = vreinterpretq_u32_u8(first), b = vreinterpretq_u32_u8(second);
  vst1q_u8(out, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
  vst1q_u8(out + 16, vreinterpretq_u8_u32(vzip2q_u32(a, b)));
}

void int8_unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  const Decode decode(t);
  for (int k0 = 0; k0 < k; k0 += t.record) {
    const Record record = record_at(t, p);
    p = record.next;
    unpack_scales(t, record, chunk->scale + k0 / t.span * kPanel, chunk->minimum + k0 / t.span * kPanel);
    uint8_t* out = chunk->q + k0 * kPanel;
    for (int i = 0; i < t.record / 4; i += 2, out += 8 * kPanel) {
#pragma GCC unroll 4
      for (int c = 0; c < kLanes; ++c) {
        if (t.bits == 8) {
          const uint8_t* q = record.q + i * 4 * kPanel + 16 * c;
          store_interleaved(out + 32 * c, vld1q_u8(q), vld1q_u8(q + 4 * kPanel));
        } else {
          uint8x16_t w[2];
          unpack_steps(t, record, i, 16 * c, w);
          store_interleaved(out + 32 * c, decode(w[0]), decode(w[1]));
        }
      }
    }
  }
}

// Sums of two rows and two channels: [row][channel].
template <int kRows>
using Sums = int32x4_t[(kRows + 1) / 2][kPanel / 2];

// acc += 2 rows x 2 channels over 8 values of k. Volatile assembly stays in order, see gemm_neon_dot.cpp.
inline void multiply(int32x4_t& acc, int8x16_t x, int8x16_t w) {
  asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(x), "w"(w));
}

// Adds the products of 8 values of k.
template <int kRows>
inline __attribute__((always_inline)) void dot8(Sums<kRows>& acc, const int8x16_t* x, const int8_t* w) {
#pragma GCC unroll 8
  for (int c = 0; c < kPanel / 2; ++c) {
    const int8x16_t weights = vld1q_s8(w + 16 * c);
#pragma GCC unroll 3
    for (int p = 0; p < (kRows + 1) / 2; ++p) multiply(acc[p][c], x[p], weights);
  }
}

// Adds the products of 16 values of k.
template <int kRows>
inline __attribute__((always_inline)) void dot16(Sums<kRows>& acc, const int8_t* x, ptrdiff_t stride, const int8_t* w) {
  int8x16_t first[(kRows + 1) / 2], second[(kRows + 1) / 2];
#pragma GCC unroll 3
  for (int p = 0; p < (kRows + 1) / 2; ++p) {
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x + 2 * p * stride));
    const int64x2_t b = 2 * p + 1 < kRows ? vreinterpretq_s64_s8(vld1q_s8(x + (2 * p + 1) * stride)) : a;
    first[p] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
    second[p] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
  }
  dot8<kRows>(acc, first, w);
  dot8<kRows>(acc, second, w + 8 * kPanel);
}

// Row r, channels 4 c to 4 c + 3.
template <int kRows>
inline int32x4_t sums_of(const Sums<kRows>& acc, int r, int c) {
  const int64x2_t a = vreinterpretq_s64_s32(acc[r / 2][2 * c]), b = vreinterpretq_s64_s32(acc[r / 2][2 * c + 1]);
  return vreinterpretq_s32_s64(r % 2 ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
}

#include "cpu/gemm_neon_tile.inl"

}  // namespace

const GemmKernels gemm_neon_i8mm = {kPanel,      kInt8Rows, kFloatRows,   0,          quantize,
                                    int8_unpack, int8_tile, float_unpack, float_tile, finish};

const FoldKernels fold_neon_i8mm = {kInt8Rows, quantize_groups<1>, fold_unpack, fold_tile};

}  // namespace ld
