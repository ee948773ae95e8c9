// Matrix products for AVX-512 VNNI. A panel is 32 channels, two registers: one load feeds 16 channels x 4 values of k.
// vpdpbusd wants unsigned x signed, so input bytes are stored with 128 added and every block starts at -128 * sum of its
// weights, which unpacking computes. int8 tiles are 7 rows: 14 integer and 14 float sums, two weights and one input fill
// the registers; float tiles are 12 rows.
// Not here: AVX-VNNI, bfloat16 arithmetic (products are float32).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false, inside GCC 12's own intrinsics (its bug 105593)
#endif
#include <immintrin.h>

#include <cmath>

#include "cpu/gemm.h"

namespace ld {
namespace {

constexpr int kPanel = 32;
constexpr int kInt8Rows = 7;
constexpr int kFloatRows = 12;

#include "cpu/gemm_avx512_vnni.inl"

void quantize(const float* x, int k, const Int8Row& row) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int b = 0; b < k / kBlock; ++b, x += kBlock) {
    const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
    // Largest magnitude as bits, so that NaN and infinity come out on top.
    const int32_t largest = _mm512_reduce_max_epi32(_mm512_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(x0), magnitude), _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest)));
    const bool finite = largest < 0x7f800000, tiny = max < 0x1p-100f;
    __m512i q0 = _mm512_setzero_si512(), q1 = q0;
    if (finite && !tiny) {
      const __m512 inverse = _mm512_set1_ps(127.0f / max);
      q0 = _mm512_cvtps_epi32(_mm512_mul_ps(x0, inverse));
      q1 = _mm512_cvtps_epi32(_mm512_mul_ps(x1, inverse));
    }
    const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
    const __m128i flip = _mm_set1_epi8(-128);
    _mm_storeu_si128((__m128i*)(row.q + b * kBlock), _mm_xor_si128(_mm512_cvtepi32_epi8(q0), flip));
    _mm_storeu_si128((__m128i*)(row.q + b * kBlock + 16), _mm_xor_si128(_mm512_cvtepi32_epi8(q1), flip));
    row.scale[b] = !finite ? __builtin_nanf("") : tiny ? 0.0f : max / 127.0f;
    row.scaled_sum[b] = row.scale[b] * static_cast<float>(sum);
    row.sum[b] = sum;
  }
}

// Bytes of 32 values and the sums that its spans of 16 or 32 start from.
template <int kBits, int kSpan, bool kTable>
inline void unpack_block(const PackedTraits& t, const uint8_t* q, const uint8_t* high, uint8_t* out, int32_t* start) {
  const __m512i less = kTable ? load_table(t) : _mm512_set1_epi8(static_cast<char>(t.offset));
  const __m512i all = _mm512_set1_epi8(-128);  // as unsigned bytes: 128
#pragma GCC unroll 2
  for (int first = 0; first < kBlock / 4; first += kSpan / 4, start += kPanel) {
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 8
    for (int i = first; i < first + kSpan / 4; i += kBits == 8 ? 1 : 2) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m512i w[2];
        unpack_steps<kBits>(q, high, i, half, w);
        if (kBits != 8) {
          w[0] = kTable ? _mm512_shuffle_epi8(less, w[0]) : _mm512_sub_epi8(w[0], less);
          w[1] = kTable ? _mm512_shuffle_epi8(less, w[1]) : _mm512_sub_epi8(w[1], less);
        }
#pragma GCC unroll 2
        for (int j = 0; j < (kBits == 8 ? 1 : 2); ++j) {
          _mm512_store_si512(out + (i + j) * 128 + half * 64, w[j]);
          dot4(sum[half], all, w[j]);
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      _mm512_store_si512(start + half * 16, _mm512_sub_epi32(_mm512_setzero_si512(), sum[half]));
    }
  }
}

template <int kBits, int kSpan, bool kTable = false>
void unpack_records(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  for (int k0 = 0; k0 < k; k0 += t.record) {
    const Record record = record_at(t, p);
    p = record.next;
    unpack_scales(t, record, chunk->scale + k0 / kSpan * kPanel, chunk->minimum + k0 / kSpan * kPanel);
    for (int i = 0; i < t.record; i += kBlock) {
      unpack_block<kBits, kSpan, kTable>(t, q_of_block<kBits>(record, i), high_of_block<kBits>(record, i),
                                         chunk->q + (k0 + i) * kPanel, chunk->start + (k0 + i) / kSpan * kPanel);
    }
  }
}

void int8_unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  if (t.table) {
    unpack_records<4, 32, true>(t, p, k, chunk);
  } else if (t.bits == 2) {
    unpack_records<2, 16>(t, p, k, chunk);
  } else if (t.bits == 3) {
    unpack_records<3, 16>(t, p, k, chunk);
  } else if (t.bits == 4) {
    unpack_records<4, 32>(t, p, k, chunk);
  } else if (t.bits == 5) {
    unpack_records<5, 32>(t, p, k, chunk);
  } else if (t.bits == 6) {
    unpack_records<6, 16>(t, p, k, chunk);
  } else {
    unpack_records<8, 32>(t, p, k, chunk);
  }
}

template <int kRows, int kSpan, bool kMinimum>
void int8_tile_of(const Int8Tile& tile) {
  constexpr int kSums = kBlock / kSpan;
  const Int8Chunk& chunk = *tile.chunk;
  __m512 y[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    y[r][0] = _mm512_loadu_ps(tile.out + r * tile.out_stride);
    y[r][1] = _mm512_loadu_ps(tile.out + r * tile.out_stride + 16);
  }
  const uint8_t* w = chunk.q;
  const int32_t* start = chunk.start;
  const float *scale = chunk.scale, *minimum = chunk.minimum;
  for (int b = 0; b < chunk.k / kBlock; ++b) {
    prefetch_ahead(tile, b);
    __m512 t[kRows][2];
#pragma GCC unroll 2
    for (int span = 0; span < kBlock / kSpan; ++span) {
      __m512i acc[kRows][2];
      const __m512i s0 = _mm512_load_si512(start), s1 = _mm512_load_si512(start + 16);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r][0] = s0;
        acc[r][1] = s1;
      }
      const uint8_t* x = tile.row.q + b * kBlock + span * kSpan;
#pragma GCC unroll 8
      for (int i = 0; i < kSpan / 4; ++i) {
        const __m512i w0 = _mm512_load_si512(w + i * 128), w1 = _mm512_load_si512(w + i * 128 + 64);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512i four = _mm512_set1_epi32(four_bytes(x + r * tile.q_stride + i * 4));
          dot4(acc[r][0], four, w0);
          dot4(acc[r][1], four, w1);
        }
      }
      const __m512 c0 = _mm512_load_ps(scale), c1 = _mm512_load_ps(scale + 16);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512 d0 = _mm512_cvtepi32_ps(acc[r][0]), d1 = _mm512_cvtepi32_ps(acc[r][1]);
        t[r][0] = span == 0 ? _mm512_mul_ps(d0, c0) : _mm512_fmadd_ps(d0, c0, t[r][0]);
        t[r][1] = span == 0 ? _mm512_mul_ps(d1, c1) : _mm512_fmadd_ps(d1, c1, t[r][1]);
      }
      w += kSpan * kPanel;
      start += kPanel;
      scale += kPanel;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 by = _mm512_set1_ps(tile.row.scale[r * tile.block_stride + b]);
      y[r][0] = _mm512_fmadd_ps(t[r][0], by, y[r][0]);
      y[r][1] = _mm512_fmadd_ps(t[r][1], by, y[r][1]);
    }
#pragma GCC unroll 2
    for (int sum = 0; kMinimum && sum < kSums; ++sum, minimum += kPanel) {
      const __m512 m0 = _mm512_load_ps(minimum), m1 = _mm512_load_ps(minimum + 16);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512 by = _mm512_set1_ps(tile.row.scaled_sum[(r * tile.block_stride + b) * kSums + sum]);
        y[r][0] = _mm512_fmadd_ps(m0, by, y[r][0]);
        y[r][1] = _mm512_fmadd_ps(m1, by, y[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(tile.out + r * tile.out_stride, y[r][0]);
    _mm512_storeu_ps(tile.out + r * tile.out_stride + 16, y[r][1]);
  }
}

using Int8TileFunction = void (*)(const Int8Tile&);

// By rows - 1.
#define LD_TILES(span, minimum)                                                                         \
  {                                                                                                     \
    int8_tile_of<1, span, minimum>, int8_tile_of<2, span, minimum>, int8_tile_of<3, span, minimum>,     \
        int8_tile_of<4, span, minimum>, int8_tile_of<5, span, minimum>, int8_tile_of<6, span, minimum>, \
        int8_tile_of<7, span, minimum>                                                                  \
  }
constexpr Int8TileFunction kTiles[2][2][kInt8Rows] = {{LD_TILES(32, false), LD_TILES(32, true)},
                                                      {LD_TILES(16, false), LD_TILES(16, true)}};
#undef LD_TILES

void int8_tile(const Int8Tile& tile) {
  const Int8Chunk& chunk = *tile.chunk;
  kTiles[chunk.span == 16][chunk.minimum_used][tile.rows - 1](tile);
}

void float_unpack(PackedKind kind, const uint8_t* records, int k, float* w) {
  for (int i = 0; i < k * kPanel; i += 16) {
    _mm512_store_ps(w + i, kind == PackedKind::f16 ? load_half(records + 2 * i) : load_bfloat(records + 2 * i));
  }
}

using Floats = __m512;
constexpr int kLanes = 16;
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats add_product(Floats sum, Floats w, float x) { return _mm512_fmadd_ps(w, _mm512_set1_ps(x), sum); }

#include "cpu/gemm_x86.inl"

}  // namespace

const GemmKernels gemm_avx512_vnni = {kPanel,      kInt8Rows, kFloatRows,   0x80,       quantize,
                                      int8_unpack, int8_tile, float_unpack, float_tile, finish};

}  // namespace ld
