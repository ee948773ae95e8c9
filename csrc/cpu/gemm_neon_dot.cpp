// Matrix products for ARM processors with the dot product extension. A panel is 8 channels, two registers: one load feeds
// 4 channels x 4 values of k. sdot multiplies signed bytes by signed bytes, so nothing needs an offset: weights are
// unpacked to signed bytes and input bytes are stored as they are. One register of input holds 16 values of k of a row,
// which sdot takes four at a time by lane. Tiles are 8 rows: 16 sums, 8 inputs and two weights of 32 registers.
// Not here: the 8-bit matrix extension (gemm_neon_i8mm.cpp), float16 and bfloat16 arithmetic (products are float32).
#include <arm_neon.h>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 8;
constexpr int kInt8Rows = 8;
constexpr int kDepth = 4;  // values of k of a channel that lie side by side in a chunk
constexpr int kFloatRows = 8;

#include "cpu/gemm_neon.inl"

void int8_unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  const Decode decode(t);
  for (int k0 = 0; k0 < k; k0 += t.record) {
    const Record record = record_at(t, p);
    p = record.next;
    unpack_scales(t, record, chunk->scale + k0 / t.span * kPanel, chunk->minimum + k0 / t.span * kPanel);
    uint8_t* out = chunk->q + k0 * kPanel;
    if (t.bits == 8) {
      for (const uint8_t* q = record.q; q < record.next; q += 16, out += 16) vst1q_u8(out, vld1q_u8(q));
      continue;
    }
    for (int i = 0; i < t.record / 4; i += 2, out += 8 * kPanel) {  // 8 values of k
#pragma GCC unroll 2
      for (int half = 0; half < 4 * kPanel; half += 16) {
        uint8x16_t w[2];
        unpack_steps(t, record, i, half, w);
        vst1q_u8(out + half, decode(w[0]));
        vst1q_u8(out + 4 * kPanel + half, decode(w[1]));
      }
    }
  }
}

template <int kRows>
using Sums = int32x4_t[kRows][kLanes];

// acc += dot products of 4 weights per channel with 4 input bytes, lane kLane of x. As volatile assembly, which stays in
// order: GCC 12 makes one long chain per sum of the intrinsic, copies sums around it, and runs out of registers.
template <int kLane>
inline void dot4(int32x4_t& acc, int8x16_t w, int8x16_t x) {
  asm volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(acc) : "w"(w), "w"(x), "n"(kLane));
}

// Four values of k of every row.
template <int kRows, int kLane>
inline __attribute__((always_inline)) void step(Sums<kRows>& acc, const int8x16_t* x, const int8_t* w) {
#pragma GCC unroll 2
  for (int c = 0; c < kLanes; ++c) {
    const int8x16_t weights = vld1q_s8(w + kLane * 4 * kPanel + 16 * c);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) dot4<kLane>(acc[r][c], weights, x[r]);
  }
}

// Adds the products of 16 values of k.
template <int kRows>
inline __attribute__((always_inline)) void dot16(Sums<kRows>& acc, const int8_t* x, ptrdiff_t stride, const int8_t* w) {
  int8x16_t inputs[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) inputs[r] = vld1q_s8(x + r * stride);
  step<kRows, 0>(acc, inputs, w);
  step<kRows, 1>(acc, inputs, w);
  step<kRows, 2>(acc, inputs, w);
  step<kRows, 3>(acc, inputs, w);
}

template <int kRows>
inline int32x4_t sums_of(const Sums<kRows>& acc, int r, int c) {
  return acc[r][c];
}

#include "cpu/gemm_neon_tile.inl"

}  // namespace

const GemmKernels gemm_neon_dot = {kPanel,      kInt8Rows, kFloatRows,   0,          quantize,
                                   int8_unpack, int8_tile, float_unpack, float_tile, finish};

const FoldKernels fold_neon_dot = {kInt8Rows, quantize_groups<1>, fold_unpack, fold_tile};

}  // namespace ld
