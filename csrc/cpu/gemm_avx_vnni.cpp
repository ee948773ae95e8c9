// Matrix products for AVX-VNNI, the 256-bit form of vpdpbusd on processors without AVX-512. What does not multiply bytes
// is that of AVX2: the same panels of 16 channels, float tiles, rounding of the input, and unpacking, to which the
// signed weights and the start values that vpdpbusd needs are added here: it wants unsigned x signed, so input bytes
// are stored with 128 added and every block starts at -128 * sum of its weights.
// int8 tiles are 6 rows: 12 integer sums, two weights and one input fill 15 of 16 registers; the float sums stay in the
// output, which is in the first-level cache. Not here: AVX512-VNNI, whose encoding and registers differ.
#include <immintrin.h>

#include "cpu/gemm.h"

namespace ld {
namespace {

constexpr int kPanel = 16;  // as gemm_avx2
constexpr int kInt8Rows = 6;
constexpr int kFloatRows = 6;

#include "cpu/gemm.inl"

// acc += dot products of 4 unsigned bytes x with 4 signed bytes w, per lane. Assembly, for the VEX encoding is the only
// one that these processors have, and so that no accumulator is copied.
inline void dot4(__m256i& acc, __m256i x, __m256i w) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(w));
}

inline __m256i load_bytes(const uint8_t* p) { return _mm256_load_si256((const __m256i*)p); }

void quantize(const float* x, int k, const Int8Row& row) {
  gemm_avx2.quantize(x, k, row);
  const __m256i flip = _mm256_set1_epi8(-128);
  for (int i = 0; i < k; i += 32) {
    __m256i* q = (__m256i*)(row.q + i);
    _mm256_storeu_si256(q, _mm256_xor_si256(_mm256_loadu_si256(q), flip));
  }
}

// Signed bytes and start values of every span, from what AVX2 unpacked.
template <int kSpan>
void sign_and_sum(const PackedTraits& t, Int8Chunk* chunk) {
  const __m256i all = _mm256_set1_epi8(-128);  // as unsigned bytes: 128
  const __m256i less = _mm256_set1_epi8(static_cast<char>(t.offset));
  const bool unsigned_weights = t.reach == 4 && t.offset;
  uint8_t* q = chunk->q;
  for (int span = 0; span < chunk->k / kSpan; ++span) {
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
    for (int i = 0; i < kSpan / 4; ++i, q += 64) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i w = load_bytes(q + 32 * half);
        if (unsigned_weights) {
          w = _mm256_sub_epi8(w, less);
          _mm256_store_si256((__m256i*)(q + 32 * half), w);
        }
        dot4(sum[half], all, w);
      }
    }
    int32_t* start = chunk->start + span * kPanel;
    _mm256_store_si256((__m256i*)start, _mm256_sub_epi32(_mm256_setzero_si256(), sum[0]));
    _mm256_store_si256((__m256i*)(start + 8), _mm256_sub_epi32(_mm256_setzero_si256(), sum[1]));
  }
}

void int8_unpack(const PackedTraits& t, const uint8_t* records, int k, Int8Chunk* chunk) {
  gemm_avx2.int8_unpack(t, records, k, chunk);
  if (t.span == 32) {
    sign_and_sum<32>(t, chunk);
  } else {
    sign_and_sum<16>(t, chunk);
  }
}

template <int kRows, int kSpan, bool kMinimum>
void int8_tile_of(const Int8Tile& tile) {
  constexpr int kSums = kBlock / kSpan;
  const Int8Chunk& chunk = *tile.chunk;
  const uint8_t* w = chunk.q;
  const int32_t* start = chunk.start;
  const float *scale = chunk.scale, *minimum = chunk.minimum;
  for (int b = 0; b < chunk.k / kBlock; ++b, minimum += kSums * kPanel) {
    prefetch_ahead(tile, b);
    __m256 t[kRows][2];
#pragma GCC unroll 2
    for (int span = 0; span < kBlock / kSpan; ++span) {
      __m256i acc[kRows][2];
      const __m256i s0 = _mm256_load_si256((const __m256i*)start), s1 = _mm256_load_si256((const __m256i*)(start + 8));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = s0;
        acc[r][1] = s1;
      }
      const uint8_t* x = tile.row.q + b * kBlock + span * kSpan;
#pragma GCC unroll 8
      for (int i = 0; i < kSpan / 4; ++i) {
        const __m256i w0 = load_bytes(w + i * 64), w1 = load_bytes(w + i * 64 + 32);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m256i four = _mm256_set1_epi32(four_bytes(x + r * tile.q_stride + i * 4));
          dot4(acc[r][0], four, w0);
          dot4(acc[r][1], four, w1);
        }
      }
      const __m256 c0 = _mm256_load_ps(scale), c1 = _mm256_load_ps(scale + 8);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 d0 = _mm256_cvtepi32_ps(acc[r][0]), d1 = _mm256_cvtepi32_ps(acc[r][1]);
        t[r][0] = span == 0 ? _mm256_mul_ps(d0, c0) : _mm256_fmadd_ps(d0, c0, t[r][0]);
        t[r][1] = span == 0 ? _mm256_mul_ps(d1, c1) : _mm256_fmadd_ps(d1, c1, t[r][1]);
      }
      w += kSpan * kPanel;
      start += kPanel;
      scale += kPanel;
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      float* out = tile.out + r * tile.out_stride;
      const __m256 by = _mm256_set1_ps(tile.row.scale[r * tile.block_stride + b]);
      __m256 y0 = _mm256_fmadd_ps(t[r][0], by, _mm256_loadu_ps(out));
      __m256 y1 = _mm256_fmadd_ps(t[r][1], by, _mm256_loadu_ps(out + 8));
#pragma GCC unroll 2
      for (int s = 0; kMinimum && s < kSums; ++s) {
        const __m256 sum = _mm256_set1_ps(tile.row.scaled_sum[(r * tile.block_stride + b) * kSums + s]);
        y0 = _mm256_fmadd_ps(_mm256_load_ps(minimum + s * kPanel), sum, y0);
        y1 = _mm256_fmadd_ps(_mm256_load_ps(minimum + s * kPanel + 8), sum, y1);
      }
      _mm256_storeu_ps(out, y0);
      _mm256_storeu_ps(out + 8, y1);
    }
  }
}

// The tile of exactly tile.rows rows, kRows at most.
template <int kRows, int kSpan, bool kMinimum>
void int8_tile_up_to(const Int8Tile& tile) {
  if constexpr (kRows > 1) {
    if (tile.rows < kRows) return int8_tile_up_to<kRows - 1, kSpan, kMinimum>(tile);
  }
  int8_tile_of<kRows, kSpan, kMinimum>(tile);
}

void int8_tile(const Int8Tile& tile) {
  if (tile.chunk->span == 16) {
    tile.chunk->minimum_used ? int8_tile_up_to<kInt8Rows, 16, true>(tile) : int8_tile_up_to<kInt8Rows, 16, false>(tile);
  } else {
    tile.chunk->minimum_used ? int8_tile_up_to<kInt8Rows, 32, true>(tile) : int8_tile_up_to<kInt8Rows, 32, false>(tile);
  }
}

void float_unpack(PackedKind kind, const uint8_t* records, int k, float* w) {
  gemm_avx2.float_unpack(kind, records, k, w);
}
void float_tile(const FloatTile& tile) { gemm_avx2.float_tile(tile); }

}  // namespace

const GemmKernels gemm_avx_vnni = {kPanel,      kInt8Rows, kFloatRows,   0x80,       quantize,
                                   int8_unpack, int8_tile, float_unpack, float_tile, finish};

}  // namespace ld
