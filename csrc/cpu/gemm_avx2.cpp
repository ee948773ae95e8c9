// Matrix products for AVX2 with FMA. A panel is 16 channels, two registers: one load feeds 8 channels x 4 values of k.
// vpmaddubsw wants unsigned x signed and saturates at 16 bits, so there are two ways, both exact:
//   4 bits  weights stay unsigned (0..15); eight products of a block fit into 16 bits (8 * 2 * 15 * 127 = 30,480); the
//           offset is taken off through the sum of the row's block. 2 bits likewise.
//   8 bits  |w| times the input with w's sign: 2 * 128 * 127 = 32,512 fits, one widening per product.
// Tiles are 4 rows (int8) and 6 rows (float). Not here: AVX-VNNI.
#include <immintrin.h>

#include <cmath>

#include "cpu/gemm.h"

namespace ld {
namespace {

constexpr int kPanel = 16;
constexpr int kInt8Rows = 4;
constexpr int kFloatRows = 6;

#include "cpu/gemm.inl"

inline __m256 load_half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline __m256 load_bfloat(const uint8_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline __m256 load_s8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

inline int32_t reduce_max(__m256i v) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

inline int32_t reduce_add(__m256i v) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

void quantize(const float* x, int k, const Int8Row& row) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int b = 0; b < k / kBlock; ++b, x += kBlock) {
    __m256 v[4];
    __m256i top = _mm256_setzero_si256();  // as bits, so that NaN and infinity come out on top
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    const int32_t largest = reduce_max(top);
    const float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(largest)));
    const bool finite = largest < 0x7f800000, tiny = max < 0x1p-100f;
    __m256i q[4] = {};
    if (finite && !tiny) {
      const __m256 inverse = _mm256_set1_ps(127.0f / max);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    }
    const int32_t sum = reduce_add(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])));
    // Packing works within halves: the permutation restores the order of groups of four.
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256((__m256i*)(row.q + b * kBlock),
                        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    row.scale[b] = !finite ? __builtin_nanf("") : tiny ? 0.0f : max / 127.0f;
    row.scaled_sum[b] = row.scale[b] * static_cast<float>(sum);
    row.sum[b] = sum;
  }
}

// The low (shift 0) or high (4) four bits of 8 bytes.
inline __m256 load_nibbles(const uint8_t* p, int shift) {
  const __m128i bytes = _mm_srl_epi16(_mm_loadl_epi64((const __m128i*)p), _mm_cvtsi32_si128(shift));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15))));
}

// Scales and minimums of one record, to [spans][16] each.
inline void unpack_scales(const PackedTraits& t, const Record& record, float* scale, float* minimum) {
  for (int half = 0; half < kPanel; half += 8) {
    const __m256 d = t.bfloat ? load_bfloat(record.d + 2 * half) : load_half(record.d + 2 * half);
    if (!t.super) {
      _mm256_store_ps(scale + half, d);
      if (t.minimum) _mm256_store_ps(minimum + half, load_half(record.dmin + 2 * half));
      continue;
    }
    for (int i = 0; i < t.record / t.span; ++i) {
      const uint8_t* codes = record.codes + i * kPanel + half;
      _mm256_store_ps(scale + i * kPanel + half, _mm256_mul_ps(d, t.joint ? load_nibbles(codes, 0) : load_s8(codes)));
    }
    if (!t.minimum) continue;
    const __m256 dmin = _mm256_sub_ps(_mm256_setzero_ps(), load_half(record.dmin + 2 * half));
    for (int i = 0; i < t.record / t.span; ++i) {
      const uint8_t* codes = record.min_codes + i * kPanel + half;
      _mm256_store_ps(minimum + i * kPanel + half,
                      _mm256_mul_ps(dmin, t.joint ? load_nibbles(codes, 4) : load_s8(codes)));
    }
  }
}

// Bits of 32 values, of which the first is `shift` bits up.
inline __m256i bits_of(__m256i packed, int shift, __m256i mask) {
  return _mm256_and_si256(_mm256_srl_epi16(packed, _mm_cvtsi32_si128(shift)), mask);
}

// The values of a record of kBits each: entries of the kind's table, else unsigned up to 4 bits without a high part.
template <int kBits, bool kTable = false>
inline void unpack_values(const PackedTraits& t, const Record& record, uint8_t* out) {
  constexpr int kLow = low_bits(kBits), kMore = kBits - kLow;
  const __m256i mask = _mm256_set1_epi8((1 << kMore) - 1);
  const __m256i less = _mm256_set1_epi8(static_cast<char>(t.offset));
  const __m256i low = _mm256_set1_epi8((1 << kLow) - 1);
  const __m256i table = kTable ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)t.table)) : low;
  for (int i = 0; i < t.record / 4; i += 2, out += 128) {  // 8 values of k
    const uint8_t *q = record.q + i * kLow / 8 * 64, *high = record.high + i * kMore / 8 * 64;
#pragma GCC unroll 2
    for (int half = 0; half < 64; half += 32) {
      const __m256i packed = _mm256_loadu_si256((const __m256i*)(q + half));
      __m256i w0 = kLow == 4 ? _mm256_and_si256(packed, low) : bits_of(packed, i * kLow % 8, low);
      __m256i w1 =
          kLow == 4 ? _mm256_and_si256(_mm256_srli_epi16(packed, 4), low) : bits_of(packed, i * kLow % 8 + kLow, low);
      if constexpr (kMore != 0) {
        const __m256i bits = _mm256_loadu_si256((const __m256i*)(high + half));
        w0 = _mm256_or_si256(w0, _mm256_slli_epi16(bits_of(bits, i * kMore % 8, mask), kLow));
        w1 = _mm256_or_si256(w1, _mm256_slli_epi16(bits_of(bits, i * kMore % 8 + kMore, mask), kLow));
      }
      if (kTable) {
        w0 = _mm256_shuffle_epi8(table, w0);
        w1 = _mm256_shuffle_epi8(table, w1);
      } else if (kBits != 2 && kBits != 4) {
        w0 = _mm256_sub_epi8(w0, less);
        w1 = _mm256_sub_epi8(w1, less);
      }
      _mm256_store_si256((__m256i*)(out + half), w0);
      _mm256_store_si256((__m256i*)(out + 64 + half), w1);
    }
  }
}

// Values of 4 bits stay unsigned; the others become signed bytes.
void int8_unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  for (int k0 = 0; k0 < k; k0 += t.record) {
    const Record record = record_at(t, p);
    p = record.next;
    unpack_scales(t, record, chunk->scale + k0 / t.span * kPanel, chunk->minimum + k0 / t.span * kPanel);
    uint8_t* out = chunk->q + k0 * kPanel;
    if (t.table) {
      unpack_values<4, true>(t, record, out);
    } else if (t.bits == 2) {
      unpack_values<2>(t, record, out);
    } else if (t.bits == 3) {
      unpack_values<3>(t, record, out);
    } else if (t.bits == 4) {
      unpack_values<4>(t, record, out);
    } else if (t.bits == 5) {
      unpack_values<5>(t, record, out);
    } else if (t.bits == 6) {
      unpack_values<6>(t, record, out);
    } else {
      for (const uint8_t* q = record.q; q < record.next; q += 32, out += 32) {
        _mm256_store_si256((__m256i*)out, _mm256_loadu_si256((const __m256i*)q));
      }
    }
  }
}

inline __m256i load_bytes(const uint8_t* p) { return _mm256_load_si256((const __m256i*)p); }

// A sum that the compiler takes as it is: GCC otherwise reorders a block's additions into a tree, which spills.
inline void keep(__m256i& sum) { asm("" : "+x"(sum)); }

// Exact dots of kSpan values: acc[r] for 16 channels.
template <int kRows, int kBits, int kSpan>
inline void dots(const uint8_t* w, const uint8_t* x, ptrdiff_t x_stride, __m256i (*acc)[2]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int i = 0; i < kSpan / 4; ++i) {
    const __m256i w0 = load_bytes(w + i * 64), w1 = load_bytes(w + i * 64 + 32);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256i four = _mm256_set1_epi32(four_bytes(x + r * x_stride + i * 4));
      __m256i p0, p1;
      if (kBits == 4) {
        p0 = _mm256_maddubs_epi16(w0, four);
        p1 = _mm256_maddubs_epi16(w1, four);
        acc[r][0] = i == 0 ? p0 : _mm256_add_epi16(acc[r][0], p0);
        acc[r][1] = i == 0 ? p1 : _mm256_add_epi16(acc[r][1], p1);
      } else {
        p0 = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(four, w0)), ones);
        p1 = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(four, w1)), ones);
        acc[r][0] = i == 0 ? p0 : _mm256_add_epi32(acc[r][0], p0);
        acc[r][1] = i == 0 ? p1 : _mm256_add_epi32(acc[r][1], p1);
      }
      keep(acc[r][0]);
      keep(acc[r][1]);
    }
  }
  if (kBits == 4) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = _mm256_madd_epi16(acc[r][0], ones);
      acc[r][1] = _mm256_madd_epi16(acc[r][1], ones);
    }
  }
}

template <int kRows, int kBits, int kSpan, bool kMinimum>
void int8_tile_of(const Int8Tile& tile) {
  constexpr int kSums = kBlock / kSpan;
  const Int8Chunk& chunk = *tile.chunk;
  const uint8_t* w = chunk.q;
  const float *scale = chunk.scale, *minimum = chunk.minimum;
  for (int b = 0; b < chunk.k / kBlock; ++b) {
    prefetch_ahead(tile, b);
    __m256 t[kRows][2];
#pragma GCC unroll 2
    for (int span = 0; span < kBlock / kSpan; ++span) {
      __m256i acc[kRows][2];
      dots<kRows, kBits, kSpan>(w, tile.row.q + b * kBlock + span * kSpan, tile.q_stride, acc);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        if (kBits == 4 && !kMinimum) {
          const __m256i less = _mm256_set1_epi32(chunk.offset * tile.row.sum[r * tile.block_stride + b]);
          acc[r][0] = _mm256_sub_epi32(acc[r][0], less);
          acc[r][1] = _mm256_sub_epi32(acc[r][1], less);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const __m256 d = _mm256_cvtepi32_ps(acc[r][i]), c = _mm256_load_ps(scale + 8 * i);
          t[r][i] = span == 0 ? _mm256_mul_ps(d, c) : _mm256_fmadd_ps(d, c, t[r][i]);
        }
      }
      w += kSpan * kPanel;
      scale += kPanel;
    }
    // Sums stay in memory (the nearest cache): sixteen registers do not hold them too.
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 by = _mm256_set1_ps(tile.row.scale[r * tile.block_stride + b]);
      float* out = tile.out + r * tile.out_stride;
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        __m256 y = _mm256_fmadd_ps(t[r][i], by, _mm256_loadu_ps(out + 8 * i));
#pragma GCC unroll 2
        for (int s = 0; kMinimum && s < kSums; ++s) {
          const __m256 sum = _mm256_set1_ps(tile.row.scaled_sum[(r * tile.block_stride + b) * kSums + s]);
          y = _mm256_fmadd_ps(_mm256_load_ps(minimum + s * kPanel + 8 * i), sum, y);
        }
        _mm256_storeu_ps(out + 8 * i, y);
      }
    }
    minimum += kSums * kPanel;
  }
}

using Int8TileFunction = void (*)(const Int8Tile&);

// By rows - 1.
#define LD_TILES(bits, span, minimum)                                                                                 \
  {                                                                                                                   \
    int8_tile_of<1, bits, span, minimum>, int8_tile_of<2, bits, span, minimum>, int8_tile_of<3, bits, span, minimum>, \
        int8_tile_of<4, bits, span, minimum>                                                                          \
  }
constexpr Int8TileFunction kTiles[2][2][kInt8Rows] = {{LD_TILES(4, 32, false), LD_TILES(4, 32, true)},
                                                      {LD_TILES(8, 32, false), LD_TILES(8, 32, true)}};
constexpr Int8TileFunction kShortTiles[2][kInt8Rows] = {LD_TILES(8, 16, false), LD_TILES(4, 16, true)};
#undef LD_TILES

void int8_tile(const Int8Tile& tile) {
  const Int8Chunk& chunk = *tile.chunk;
  const bool minimum = chunk.minimum_used;
  const Int8TileFunction* tiles = chunk.span == 16 ? kShortTiles[minimum] : kTiles[chunk.reach > 4][minimum];
  tiles[tile.rows - 1](tile);
}

void float_unpack(PackedKind kind, const uint8_t* records, int k, float* w) {
  for (int i = 0; i < k * kPanel; i += 8) {
    _mm256_store_ps(w + i, kind == PackedKind::f16 ? load_half(records + 2 * i) : load_bfloat(records + 2 * i));
  }
}

using Floats = __m256;
constexpr int kLanes = 8;
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline Floats add_product(Floats sum, Floats w, float x) { return _mm256_fmadd_ps(w, _mm256_set1_ps(x), sum); }

#include "cpu/gemm_x86.inl"

}  // namespace

const GemmKernels gemm_avx2 = {kPanel,      kInt8Rows, kFloatRows,   0,          quantize,
                               int8_unpack, int8_tile, float_unpack, float_tile, finish};

}  // namespace ld
