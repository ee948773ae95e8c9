// Fast arithmetic for AVX2: |w| times the input with w's sign, as its exact products of 8 bits, 2 * 127 * 127 fits into
// 16 bits. Tiles are 4 rows by 16 channels. Not here: AVX-VNNI.
#include <immintrin.h>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 16;
constexpr int kRows = 4;

#include "cpu/fold.inl"
#include "cpu/gemm.inl"

void unpack(const PackedTraits& t, const uint8_t* records, int k, Int8Chunk* chunk) {
  gemm_avx2.int8_unpack(t, records, k, chunk);
  fold_chunk<0x80, 4>(t, t.reach == 4, chunk);
}

// A sum that the compiler takes as it is, see gemm_avx2.cpp.
inline void add(__m256i& sum, __m256i products) {
  sum = _mm256_add_epi32(sum, products);
  asm("" : "+x"(sum));
}

template <int kRowCount>
void tile_of(const Int8Tile& tile) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* w = tile.chunk->q;
  const int k = tile.chunk->k;
  for (int g = 0; g * kGroup < k; ++g) {
    const int end = g * kGroup + kGroup < k ? g * kGroup + kGroup : k;
    __m256i acc[kRowCount][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int i = g * kGroup; i < end; i += kBlock) {
      prefetch_ahead(tile, i / kBlock);
#pragma GCC unroll 8
      for (int step = 0; step < kBlock / 4; ++step, w += 64) {
        const __m256i w0 = _mm256_load_si256((const __m256i*)w), w1 = _mm256_load_si256((const __m256i*)(w + 32));
        const __m256i abs0 = _mm256_abs_epi8(w0), abs1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 4
        for (int r = 0; r < kRowCount; ++r) {
          const __m256i four = _mm256_set1_epi32(four_bytes(tile.row.q + i + r * tile.q_stride + 4 * step));
          add(acc[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(abs0, _mm256_sign_epi8(four, w0)), ones));
          add(acc[r][1], _mm256_madd_epi16(_mm256_maddubs_epi16(abs1, _mm256_sign_epi8(four, w1)), ones));
        }
      }
    }
    const float* scale = tile.chunk->group_scale + g * kPanel;
#pragma GCC unroll 4
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
  static constexpr void (*kTiles[kRows])(const Int8Tile&) = {tile_of<1>, tile_of<2>, tile_of<3>, tile_of<4>};
  kTiles[tile.rows - 1](tile);
}

}  // namespace

const FoldKernels fold_avx2 = {kRows, quantize_groups<1>, unpack, tile};

}  // namespace ld
