// Fast arithmetic for AVX-VNNI: panels, unpacking and rounding of AVX2, folded weights as unsigned bytes, 128 added, so
// that every group of a row starts at -128 * sum of its bytes. Tiles are 6 rows by 16 channels; float sums stay in
// memory.
#include <immintrin.h>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 16;  // as gemm_avx2
constexpr int kRows = 6;

#include "cpu/fold.inl"
#include "cpu/gemm.inl"

inline void dot4(__m256i& acc, __m256i x, __m256i w) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(w));
}

void unpack(const PackedTraits& t, const uint8_t* records, int k, Int8Chunk* chunk) {
  gemm_avx2.int8_unpack(t, records, k, chunk);
  fold_chunk<0, 4>(t, t.reach == 4, chunk);
}

template <int kRowCount>
void tile_of(const Int8Tile& tile) {
  const uint8_t* w = tile.chunk->q;
  const int k = tile.chunk->k;
  for (int g = 0; g * kGroup < k; ++g) {
    const int end = g * kGroup + kGroup < k ? g * kGroup + kGroup : k;
    __m256i acc[kRowCount][2];
#pragma GCC unroll 6
    for (int r = 0; r < kRowCount; ++r) {
      acc[r][0] = acc[r][1] = _mm256_set1_epi32(tile.row.sum[r * tile.block_stride + g]);
    }
    for (int i = g * kGroup; i < end; i += kBlock) {
      prefetch_ahead(tile, i / kBlock);
#pragma GCC unroll 8
      for (int step = 0; step < kBlock / 4; ++step, w += 64) {
        const __m256i w0 = _mm256_load_si256((const __m256i*)w), w1 = _mm256_load_si256((const __m256i*)(w + 32));
#pragma GCC unroll 6
        for (int r = 0; r < kRowCount; ++r) {
          const __m256i four = _mm256_set1_epi32(four_bytes(tile.row.q + i + r * tile.q_stride + 4 * step));
          dot4(acc[r][0], w0, four);
          dot4(acc[r][1], w1, four);
        }
      }
    }
    const float* scale = tile.chunk->group_scale + g * kPanel;
#pragma GCC unroll 6
    for (int r = 0; r < kRowCount; ++r) {
      const __m256 by = _mm256_set1_ps(tile.row.scale[r * tile.block_stride + g]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* out = tile.out + r * tile.out_stride + 8 * half;
        const __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[r][half]), _mm256_load_ps(scale + 8 * half));
        _mm256_storeu_ps(out, _mm256_fmadd_ps(t, by, _mm256_loadu_ps(out)));
      }
    }
  }
}

void tile(const Int8Tile& tile) {
  static constexpr void (*kTiles[kRows])(const Int8Tile&) = {tile_of<1>, tile_of<2>, tile_of<3>,
                                                             tile_of<4>, tile_of<5>, tile_of<6>};
  kTiles[tile.rows - 1](tile);
}

}  // namespace

const FoldKernels fold_avx_vnni = {kRows, quantize_groups<-128>, unpack, tile};

}  // namespace ld
