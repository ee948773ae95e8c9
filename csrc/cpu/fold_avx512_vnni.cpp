// Fast arithmetic for AVX-512 VNNI. Folded weights are unsigned bytes, 128 added, and input bytes are signed, so every
// group of a row starts at -128 * sum of its bytes. A tile is 7 rows by 32 channels: 14 integer and 14 float sums, two
// weights and one input. Twelve rows with float sums in memory reach less: 24 stores per group.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false, inside GCC 12's own intrinsics (its bug 105593)
#endif
#include <immintrin.h>

#include "cpu/fold.h"

namespace ld {
namespace {

constexpr int kPanel = 32;
constexpr int kRows = 7;
constexpr int kUnroll = 8;  // steps of 4 values; a group is a multiple

#include "cpu/fold.inl"
#include "cpu/gemm_avx512_vnni.inl"

void quantize(const float* x, int k, const Int8Row& row) {
  for (int g = 0; g * kGroup < k; ++g) {
    const int begin = g * kGroup, end = begin + kGroup < k ? begin + kGroup : k;
    __m512i top = _mm512_setzero_si512();  // largest magnitude as bits, so that NaN and infinity come out on top
    for (int i = begin; i < end; i += 16) {
      top = _mm512_max_epi32(top, _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff)));
    }
    const int32_t largest = _mm512_reduce_max_epi32(top);
    const GroupScale scale(largest);
    const __m512 inverse = _mm512_set1_ps(scale.inverse);
    const __mmask16 used = scale.inverse != 0 ? 0xffff : 0;
    __m512i sums = _mm512_setzero_si512();
    for (int i = begin; i < end; i += 16) {
      const __m512i q = _mm512_maskz_cvtps_epi32(used, _mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      sums = _mm512_add_epi32(sums, q);
      _mm_storeu_si128((__m128i*)(row.q + i), _mm512_cvtepi32_epi8(q));
    }
    row.scale[g] = scale.scale;
    row.sum[g] = -128 * _mm512_reduce_add_epi32(sums);
  }
}

// Both halves of every lane.
inline __m512i twice(__m512 x) {
  const __m512i whole = _mm512_cvtps_epi32(x);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16));
}

// What folds one span of 16 channels: w = (q * by + plus) / 256, with q = value centred in kReach bits.
struct Factors {
  __m512i by, plus;
};

// Factors of the spans of a group of 16 channels; returns the scale of the group.
template <int kReach, bool kMinimum>
inline __m512 group_factors(const float* scale, const float* minimum, int spans, Factors* out) {
  const __m512 half = _mm512_set1_ps(1 << (kReach - 1)), top = _mm512_set1_ps((1 << kReach) - 1);
  __m512 largest = _mm512_setzero_ps();
  for (int i = 0; i < spans; ++i) {
    const __m512 s = _mm512_load_ps(scale + i * kPanel);
    largest = _mm512_max_ps(largest, _mm512_mul_ps(_mm512_abs_ps(s), half));
    if (kMinimum) {
      const __m512 m = _mm512_load_ps(minimum + i * kPanel);
      largest = _mm512_max_ps(largest, _mm512_max_ps(_mm512_abs_ps(m), _mm512_abs_ps(_mm512_fmadd_ps(s, top, m))));
    }
  }
  const __m512 group = _mm512_mul_ps(largest, _mm512_set1_ps(1 / 127.0f));
  const __mmask16 some = _mm512_cmp_ps_mask(group, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), group);
  const __m512 unit_scale = _mm512_set1_ps(128 << kReach), zero = _mm512_set1_ps(kFoldZero);
  for (int i = 0; i < spans; ++i) {
    const __m512 unit = _mm512_mul_ps(_mm512_load_ps(scale + i * kPanel), inverse);
    out[i].by = twice(_mm512_min_ps(_mm512_mul_ps(unit, unit_scale), _mm512_set1_ps(32767.0f)));
    __m512 plus = zero;
    if (kMinimum) {
      const __m512 m = _mm512_mul_ps(_mm512_load_ps(minimum + i * kPanel), _mm512_set1_ps(256.0f));
      plus = _mm512_fmadd_ps(m, inverse, _mm512_fmadd_ps(unit, unit_scale, zero));
    }
    out[i].plus = twice(plus);
  }
  return group;
}

// Signed 16-bit numbers, the value of kBits in the top ones, from any that has it there as stored.
template <int kBits>
inline __m512i centred(__m512i x) {
  const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(0xffff << (16 - kBits)));
  return _mm512_ternarylogic_epi32(x, top, _mm512_set1_epi16(INT16_MIN), 0x6a);  // (x & top) ^ sign
}

inline __m512i fold_bytes(__m512i even, __m512i odd, const Factors& f) {
  even = _mm512_add_epi16(_mm512_mulhrs_epi16(even, f.by), f.plus);
  odd = _mm512_add_epi16(_mm512_mulhrs_epi16(odd, f.by), f.plus);
  return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srli_epi16(even, 8), odd);
}

inline __m512i fold_signed(__m512i w, const Factors& f) {
  return fold_bytes(_mm512_slli_epi16(w, 8), _mm512_and_si512(w, _mm512_set1_epi16(-256)), f);
}

// Steps i and i + 1 of 32 values of k and 16 channels (8 bits: step i only). Four bits that reach eight are looked up in
// the table.
template <int kBits, int kReach>
inline void fold_steps(const uint8_t* q, const uint8_t* high, int i, int half, __m512i table, const Factors& f,
                       __m512i w[2]) {
  if constexpr (kBits == low_bits(kBits) && kBits == kReach && kBits < 8) {  // shifted up from where they lie
    const Shorts packed = (Shorts)_mm512_loadu_si512(q + i * kBits / 8 * 4 * kPanel + half * 64);
    const auto value = [&](int shift) { return centred<kBits>((__m512i)(packed << shift)); };
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int room = 8 - kBits - (i + j) * kBits % 8;  // above them in their byte
      w[j] = fold_bytes(value(8 + room), value(room), f);
    }
    return;
  }
  unpack_steps<kBits>(q, high, i, half, w);
  if (kBits == 8) {  // signed as they are
    w[0] = fold_signed(w[0], f);
    return;
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    if (kReach == 8) {
      w[j] = fold_signed(_mm512_shuffle_epi8(table, w[j]), f);
    } else {
      const __m512i even = _mm512_slli_epi16(w[j], 16 - kReach), odd = _mm512_slli_epi16(w[j], 8 - kReach);
      w[j] = fold_bytes(centred<kReach>(even), centred<kReach>(odd), f);
    }
  }
}

template <int kBits, int kReach, int kSpan, bool kMinimum>
void unpack_records(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  constexpr int kSteps = kBits == 8 ? 1 : 2, kGroupSpans = kGroup / kSpan, kBlockSpans = kBlock / kSpan;
  const size_t record = record_at(t, p).next - p;
  for (int i = 0; i < k / t.record; ++i) {
    unpack_scales(t, record_at(t, p + i * record), chunk->scale + i * t.record / kSpan * kPanel,
                  chunk->minimum + i * t.record / kSpan * kPanel);
  }
  const __m512i table = t.table ? load_table(t) : _mm512_setzero_si512();
  const int spans = k / kSpan, record_spans = t.record / kSpan;
  for (int first = 0; first < spans; first += kGroupSpans) {
    const int count = first + kGroupSpans < spans ? kGroupSpans : spans - first;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int at = first * kPanel + 16 * half;
      Factors factors[kGroupSpans];
      const __m512 scale = group_factors<kReach, kMinimum>(chunk->scale + at, chunk->minimum + at, count, factors);
      _mm512_store_ps(chunk->group_scale + first / kGroupSpans * kPanel + 16 * half, scale);
      for (int span = 0; span < count; span += kBlockSpans) {
        const Record from = record_at(t, p + (first + span) / record_spans * record);
        const int in_record = (first + span) % record_spans * kSpan;
        const uint8_t *q = q_of_block<kBits>(from, in_record), *high = high_of_block<kBits>(from, in_record);
        uint8_t* out = chunk->q + (first + span) * kSpan * kPanel + half * 64;
#pragma GCC unroll 8
        for (int i = 0; i < kBlock / 4; i += kSteps) {
          __m512i w[2];
          fold_steps<kBits, kReach>(q, high, i, half, table, factors[span + 4 * i / kSpan], w);
          for (int j = 0; j < kSteps; ++j) _mm512_store_si512(out + (i + j) * 128, w[j]);
        }
      }
    }
  }
}

void unpack(const PackedTraits& t, const uint8_t* p, int k, Int8Chunk* chunk) {
  if (t.table) {
    unpack_records<4, 8, 32, false>(t, p, k, chunk);
  } else if (t.bits == 2) {
    unpack_records<2, 2, 16, true>(t, p, k, chunk);
  } else if (t.bits == 3) {
    unpack_records<3, 3, 16, false>(t, p, k, chunk);
  } else if (t.bits == 4) {
    t.minimum ? unpack_records<4, 4, 32, true>(t, p, k, chunk) : unpack_records<4, 4, 32, false>(t, p, k, chunk);
  } else if (t.bits == 5) {
    t.minimum ? unpack_records<5, 5, 32, true>(t, p, k, chunk) : unpack_records<5, 5, 32, false>(t, p, k, chunk);
  } else if (t.bits == 6) {
    unpack_records<6, 6, 16, false>(t, p, k, chunk);
  } else {
    unpack_records<8, 8, 32, false>(t, p, k, chunk);
  }
}

template <int kRowCount>
void tile_of(const Int8Tile& tile) {
  __m512 y[kRowCount][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r) {
    y[r][0] = _mm512_loadu_ps(tile.out + r * tile.out_stride);
    y[r][1] = _mm512_loadu_ps(tile.out + r * tile.out_stride + 16);
  }
  const uint8_t* w = tile.chunk->q;
  const int k = tile.chunk->k;
  for (int g = 0; g * kGroup < k; ++g) {
    const int end = g * kGroup + kGroup < k ? g * kGroup + kGroup : k;
    __m512i acc[kRowCount][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r) {
      acc[r][0] = acc[r][1] = _mm512_set1_epi32(tile.row.sum[r * tile.block_stride + g]);
    }
    for (int i = g * kGroup; i < end; i += 4 * kUnroll) {
      prefetch_ahead(tile, i / kBlock);
      const uint8_t* x = tile.row.q + i;
#pragma GCC unroll 8
      for (int step = 0; step < kUnroll; ++step, w += 128) {
        const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
#pragma GCC unroll 8
        for (int r = 0; r < kRowCount; ++r) {
          const __m512i four = _mm512_set1_epi32(four_bytes(x + r * tile.q_stride + 4 * step));
          dot4(acc[r][0], w0, four);
          dot4(acc[r][1], w1, four);
        }
      }
    }
    const float* scale = tile.chunk->group_scale + g * kPanel;
    const __m512 c0 = _mm512_load_ps(scale), c1 = _mm512_load_ps(scale + 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRowCount; ++r) {
      const __m512 by = _mm512_set1_ps(tile.row.scale[r * tile.block_stride + g]);
      y[r][0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][0]), c0), by, y[r][0]);
      y[r][1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][1]), c1), by, y[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r) {
    _mm512_storeu_ps(tile.out + r * tile.out_stride, y[r][0]);
    _mm512_storeu_ps(tile.out + r * tile.out_stride + 16, y[r][1]);
  }
}

void tile(const Int8Tile& tile) {
  static constexpr void (*kTiles[kRows])(const Int8Tile&) = {tile_of<1>, tile_of<2>, tile_of<3>, tile_of<4>,
                                                             tile_of<5>, tile_of<6>, tile_of<7>};
  kTiles[tile.rows - 1](tile);
}

}  // namespace

const FoldKernels fold_avx512_vnni = {kRows, quantize, unpack, tile};

}  // namespace ld
