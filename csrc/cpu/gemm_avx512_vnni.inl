// What exact and fast arithmetic share on AVX-512 VNNI: the instruction, and reading of records. Included inside an
// anonymous namespace, after kPanel.

#include "cpu/gemm.inl"

// acc += dot products of 4 unsigned bytes x with 4 signed bytes w, per lane. As one instruction of
// assembly: GCC 12 copies the accumulator around the intrinsic when a loop is not fully unrolled.
inline void dot4(__m512i& acc, __m512i x, __m512i w) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w)); }

inline __m512 load_half(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512 load_bfloat(const uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline __m512 load_s8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// The low (shift 0) or high (4) four bits of 16 bytes.
inline __m512 load_nibbles(const uint8_t* p, int shift) {
  const __m128i bytes = _mm_srl_epi16(_mm_loadu_si128((const __m128i*)p), _mm_cvtsi32_si128(shift));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15))));
}

// Scales and minimums of one record, to [spans][32] each.
inline void unpack_scales(const PackedTraits& t, const Record& record, float* scale, float* minimum) {
  for (int half = 0; half < kPanel; half += 16) {
    const __m512 d = t.bfloat ? load_bfloat(record.d + 2 * half) : load_half(record.d + 2 * half);
    if (!t.super) {
      _mm512_store_ps(scale + half, d);
      if (t.minimum) _mm512_store_ps(minimum + half, load_half(record.dmin + 2 * half));
      continue;
    }
    for (int i = 0; i < t.record / t.span; ++i) {
      const uint8_t* codes = record.codes + i * kPanel + half;
      _mm512_store_ps(scale + i * kPanel + half, _mm512_mul_ps(d, t.joint ? load_nibbles(codes, 0) : load_s8(codes)));
    }
    if (!t.minimum) continue;
    const __m512 dmin = _mm512_sub_ps(_mm512_setzero_ps(), load_half(record.dmin + 2 * half));
    for (int i = 0; i < t.record / t.span; ++i) {
      const uint8_t* codes = record.min_codes + i * kPanel + half;
      _mm512_store_ps(minimum + i * kPanel + half,
                      _mm512_mul_ps(dmin, t.joint ? load_nibbles(codes, 4) : load_s8(codes)));
    }
  }
}

// The table of a kind, for all lanes.
inline __m512i load_table(const PackedTraits& t) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)t.table));
}

typedef uint16_t Shorts __attribute__((vector_size(64), may_alias));

// The part of kBits of steps i and i + 1 of 32 values of k: 4 values by 16 channels each. 8 bits: of step i only.
template <int kBits>
inline void unpack_part(const uint8_t* part, int i, int half, __m512i w[2]) {
  w[0] = w[1] = _mm512_loadu_si512(part + i * kBits / 8 * 4 * kPanel + half * 64);
  if (kBits == 8) return;
  const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) w[j] = _mm512_and_si512((__m512i)((Shorts)w[j] >> (i + j) * kBits % 8), mask);
}

// Stored values of kBits of steps i and i + 1 (8 bits: of step i only).
template <int kBits>
inline void unpack_steps(const uint8_t* q, const uint8_t* high, int i, int half, __m512i w[2]) {
  constexpr int kLow = low_bits(kBits);
  unpack_part<kLow>(q, i, half, w);
  if constexpr (kBits != kLow) {
    __m512i more[2];
    unpack_part<kBits - kLow>(high, i, half, more);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) w[j] = _mm512_or_si512(w[j], _mm512_slli_epi16(more[j], kLow));
  }
}

// Where the 32 values of k from k0 on of a record lie.
template <int kBits>
inline const uint8_t* q_of_block(const Record& record, int k0) {
  return record.q + k0 * kPanel / 8 * low_bits(kBits);
}
template <int kBits>
inline const uint8_t* high_of_block(const Record& record, int k0) {
  return record.high + k0 * kPanel / 8 * (kBits - low_bits(kBits));
}
