// What the NEON rows of matrix products share: input rows in signed bytes, scales, float tiles. Included by
// gemm_neon_<row>.cpp inside its anonymous namespace, after kPanel (a multiple of 8), kInt8Rows and kFloatRows, and
// compiled under that file's flags. Not here: products of bytes (gemm_neon_tile.inl), the layout of an unpacked chunk.

#include "cpu/fold.inl"
#include "cpu/gemm.inl"

constexpr int kLanes = kPanel / 4;  // vectors of 4 channels

inline float32x4_t load_half(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
inline float32x4_t load_bfloat(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
// 8 signed bytes as floats
inline void floats_of(uint8x8_t bytes, float32x4_t out[2]) {
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(bytes));
  out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
}

void quantize(const float* x, int k, const Int8Row& row) {
  const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
  for (int b = 0; b < k / kBlock; ++b, x += kBlock) {
    float32x4_t v[8];
    uint32x4_t top = vdupq_n_u32(0);  // as bits, so that NaN and infinity come out on top
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(x + 4 * i);
      top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(v[i]), magnitude));
    }
    const uint32_t largest = vmaxvq_u32(top);
    const float max = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(largest)), 0);
    const bool finite = largest < 0x7f800000, tiny = max < 0x1p-100f;
    const float inverse = finite && !tiny ? 127.0f / max : 0.0f;
    int32x4_t sums = vdupq_n_s32(0);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      int32x4_t q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // to nearest even; values that are not finite end as 0
        q[i] = finite ? vcvtnq_s32_f32(vmulq_n_f32(v[4 * half + i], inverse)) : vdupq_n_s32(0);
        sums = vaddq_s32(sums, q[i]);
      }
      const int16x8_t low = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]));
      const int16x8_t high = vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3]));
      vst1q_s8((int8_t*)row.q + b * kBlock + 16 * half, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    }
    const int32_t sum = vaddvq_s32(sums);
    row.scale[b] = !finite ? __builtin_nanf("") : tiny ? 0.0f : max / 127.0f;
    row.scaled_sum[b] = row.scale[b] * static_cast<float>(sum);
    row.sum[b] = sum;
  }
}

// Scales and minimums of one record, to [spans][kPanel] each.
inline void unpack_scales(const PackedTraits& t, const Record& record, float* scale, float* minimum) {
  for (int c = 0; c < kPanel; c += 8) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int at = c + 4 * half;
      const float32x4_t d = t.bfloat ? load_bfloat(record.d + 2 * at) : load_half(record.d + 2 * at);
      float32x4_t codes[2];
      for (int i = 0; i < t.record / t.span; ++i) {
        const uint8x8_t bytes = vld1_u8(record.codes + i * kPanel + c);
        if (t.super) floats_of(t.joint ? vand_u8(bytes, vdup_n_u8(15)) : bytes, codes);
        vst1q_f32(scale + i * kPanel + at, t.super ? vmulq_f32(d, codes[half]) : d);
      }
      if (!t.minimum) continue;
      const float32x4_t dmin = load_half(record.dmin + 2 * at);
      for (int i = 0; i < t.record / t.span; ++i) {
        const uint8x8_t bytes = vld1_u8(record.min_codes + i * kPanel + c);
        if (t.super) floats_of(t.joint ? vshr_n_u8(bytes, 4) : bytes, codes);
        vst1q_f32(minimum + i * kPanel + at, t.super ? vmulq_f32(vnegq_f32(dmin), codes[half]) : dmin);
      }
    }
  }
}

// The part of `bits` bits of the i-th 4 values of k of a record, for the 16 bytes at `at` of the panel.
inline uint8x16_t part_of(const uint8_t* part, int bits, int i, int at) {
  const uint8x16_t packed = vld1q_u8(part + i * bits / 8 * 4 * kPanel + at);
  const uint8x16_t shifted = vshlq_u8(packed, vdupq_n_s8(static_cast<int8_t>(-(i * bits % 8))));
  return vandq_u8(shifted, vdupq_n_u8(static_cast<uint8_t>((1 << bits) - 1)));
}

// Stored values of fewer than 8 bits of steps i and i + 1, 4 values of k each, for the 16 bytes at `at` of the panel.
inline void unpack_steps(const PackedTraits& t, const Record& record, int i, int at, uint8x16_t w[2]) {
  const int low = low_bits(t.bits), more = t.bits - low;
  if (low == 4) {
    const uint8x16_t packed = vld1q_u8(record.q + i * 2 * kPanel + at);
    w[0] = vandq_u8(packed, vdupq_n_u8(15));
    w[1] = vshrq_n_u8(packed, 4);
  } else {
    w[0] = part_of(record.q, low, i, at);
    w[1] = part_of(record.q, low, i + 1, at);
  }
  if (more == 0) return;
  const int8x16_t up = vdupq_n_s8(static_cast<int8_t>(low));
  w[0] = vorrq_u8(w[0], vshlq_u8(part_of(record.high, more, i, at), up));
  w[1] = vorrq_u8(w[1], vshlq_u8(part_of(record.high, more, i + 1, at), up));
}

// Signed bytes of stored values of fewer than 8 bits.
struct Decode {
  explicit Decode(const PackedTraits& t)
      : looked_up(t.table != nullptr),
        by(looked_up ? vld1q_u8((const uint8_t*)t.table) : vdupq_n_u8(static_cast<uint8_t>(t.offset))) {}
  uint8x16_t operator()(uint8x16_t stored) const { return looked_up ? vqtbl1q_u8(by, stored) : vsubq_u8(stored, by); }
  bool looked_up;
  uint8x16_t by;  // the table, or what is subtracted
};

// The end of a block for 4 channels of one row: t = scale * dot, plus the span before where there is one.
inline float32x4_t scaled(int32x4_t dot, const float* scale) { return vmulq_f32(vcvtq_f32_s32(dot), vld1q_f32(scale)); }
inline float32x4_t scaled(int32x4_t dot, const float* scale, float32x4_t before) {
  return vfmaq_f32(before, vcvtq_f32_s32(dot), vld1q_f32(scale));
}

// y += t * row scale (+ minimum * scaled sum of the row), in memory: sums of bytes fill the registers.
template <int kSpan, bool kMinimum>
inline void add_block(const Int8Tile& tile, int r, int b, int c, float32x4_t t, const float* minimum) {
  constexpr int kSums = kBlock / kSpan;
  float* out = tile.out + r * tile.out_stride + c;
  const ptrdiff_t at = r * tile.block_stride + b;
  float32x4_t y = vfmaq_n_f32(vld1q_f32(out), t, tile.row.scale[at]);
  for (int s = 0; kMinimum && s < kSums; ++s) {
    y = vfmaq_n_f32(y, vld1q_f32(minimum + s * kPanel + c), tile.row.scaled_sum[at * kSums + s]);
  }
  vst1q_f32(out, y);
}

// ---- float kinds ----

void float_unpack(PackedKind kind, const uint8_t* records, int k, float* w) {
  for (int i = 0; i < k * kPanel; i += 4) {
    vst1q_f32(w + i, kind == PackedKind::f16 ? load_half(records + 2 * i) : load_bfloat(records + 2 * i));
  }
}

template <int kRows>
struct FloatTileOf {
  static void run(const FloatTile& tile) {
    float32x4_t y[kRows][kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kLanes; ++c) y[r][c] = vld1q_f32(tile.out + r * tile.out_stride + 4 * c);
    }
    const float *w = tile.w, *x = tile.x;
    int i = 0;
    for (; i + 4 <= tile.k; i += 4, x += 4) {
      float32x4_t four[kRows];  // of every row
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) four[r] = vld1q_f32(x + r * tile.x_stride);
      step<0>(y, four, w);
      step<1>(y, four, w);
      step<2>(y, four, w);
      step<3>(y, four, w);
    }
    for (; i < tile.k; ++i, ++x) {
      float32x4_t one[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) one[r] = vdupq_n_f32(x[r * tile.x_stride]);
      step<0>(y, one, w);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kLanes; ++c) vst1q_f32(tile.out + r * tile.out_stride + 4 * c, y[r][c]);
    }
  }

  // One k: lane kLane of every row's x.
  template <int kLane>
  static inline __attribute__((always_inline)) void step(float32x4_t (&y)[kRows][kLanes], const float32x4_t* x,
                                                         const float*& w) {
#pragma GCC unroll 4
    for (int c = 0; c < kLanes; ++c, w += 4) {
      const float32x4_t weights = vld1q_f32(w);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) y[r][c] = vfmaq_laneq_f32(y[r][c], weights, x[r], kLane);
    }
  }
};

void float_tile(const FloatTile& tile) { by_rows<kFloatRows, FloatTileOf>(tile); }
