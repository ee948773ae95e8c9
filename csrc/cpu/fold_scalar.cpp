// Fast arithmetic in plain C++, the reference of every other row: signed bytes.
#include <cmath>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 8;
constexpr int kRows = 4;

#include "cpu/fold.inl"
#include "cpu/gemm.inl"

void unpack(const PackedTraits& t, const uint8_t* records, int k, Int8Chunk* chunk) {
  gemm_scalar.int8_unpack(t, records, k, chunk);
  fold_chunk<0x80, 4>(t, false, chunk);
}

void tile(const Int8Tile& tile) {
  const Int8Chunk& chunk = *tile.chunk;
  for (int r = 0; r < tile.rows; ++r) {
    const uint8_t* x = tile.row.q + r * tile.q_stride;
    for (int c = 0; c < kPanel; ++c) {
      float y = tile.out[r * tile.out_stride + c];
      for (int i = 0, g = 0; i < chunk.k; ++g) {
        int32_t dot = 0;
        for (; i < chunk.k && i < (g + 1) * kGroup; ++i) {
          dot += static_cast<int8_t>(chunk.q[(i / 4 * kPanel + c) * 4 + i % 4]) * static_cast<int8_t>(x[i]);
        }
        const float t = static_cast<float>(dot) * chunk.group_scale[g * kPanel + c];
        y = fmaf(t, tile.row.scale[r * tile.block_stride + g], y);
      }
      tile.out[r * tile.out_stride + c] = y;
    }
  }
}

}  // namespace

const FoldKernels fold_scalar = {kRows, quantize_groups<1>, unpack, tile};

}  // namespace ld
