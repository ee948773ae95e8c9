// What every fold_<row>.cpp compiles under its own flags: constants of the format, and rounding and folding in plain
// loops that compilers turn into vectors, for rows without a faster way. Included once per row, inside its anonymous
// namespace, after kPanel.

// Folded weights are computed in 1/256: 128 for the unsigned byte and a half for rounding.
constexpr float kFoldZero = 0x8080;

// Values are taken as signed, less 2^(reach - 1); what that adds to a minimum, in scales.
inline float fold_half(const PackedTraits& t) { return static_cast<float>(1 << (t.reach - 1)); }

// From the bits of a group's largest magnitude.
struct GroupScale {
  explicit GroupScale(uint32_t largest) {
    float max;
    __builtin_memcpy(&max, &largest, 4);
    const bool finite = largest < 0x7f800000, tiny = max < 0x1p-100f;
    inverse = finite && !tiny ? 127.0f / max : 0.0f;
    scale = !finite ? __builtin_nanf("") : tiny ? 0.0f : max / 127.0f;
  }
  float inverse, scale;
};

// Sums of a group are multiplied by kSum.
template <int kSum>
inline void quantize_groups(const float* x, int k, const Int8Row& row) {
  for (int g = 0; g * kGroup < k; ++g) {
    const int begin = g * kGroup, end = begin + kGroup < k ? begin + kGroup : k;
    uint32_t largest = 0;  // as bits, so that NaN and infinity come out on top
    for (int i = begin; i < end; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, x + i, 4);
      bits &= 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    const GroupScale scale(largest);
    int32_t sum = 0;
    for (int i = begin; i < end; ++i) {
      // Adding 1.5 * 2^23 rounds to nearest even; the low bits are then the integer.
      const float rounded = (scale.inverse == 0 ? 0.0f : x[i] * scale.inverse) + 0x1.8p23f;
      int32_t bits;
      __builtin_memcpy(&bits, &rounded, 4);
      const int8_t q = static_cast<int8_t>(bits);
      row.q[i] = static_cast<uint8_t>(q);
      sum += q;
    }
    row.scale[g] = scale.scale;
    row.sum[g] = kSum * sum;
  }
}

// Folds unpacked bytes, [k / kDepth][channel][kDepth], in place, to signed ones xor kFlip ^ 128. Before, they are values
// less the kind's offset, or without it where they are as_stored.
template <int kFlip, int kDepth>
inline void fold_chunk(const PackedTraits& t, bool as_stored, Int8Chunk* chunk) {
  const int shift = 16 - t.reach, centre = t.reach == 8 ? 0 : (1 << (t.reach - 1)) - (as_stored ? 0 : t.offset);
  const float half = fold_half(t), top = 2 * half - 1;
  const int spans = chunk->k / t.span, per_group = kGroup / t.span;
  for (int first = 0; first < spans; first += per_group) {
    const int last = first + per_group < spans ? first + per_group : spans;
    float* group_scale = chunk->group_scale + first / per_group * kPanel;
    float largest[kPanel] = {}, inverse[kPanel];
    for (int span = first; span < last; ++span) {
      const float *scale = chunk->scale + span * kPanel, *minimum = chunk->minimum + span * kPanel;
      for (int c = 0; c < kPanel; ++c) {
        float reach = __builtin_fabsf(scale[c]) * half;
        if (t.minimum) {
          const float low = __builtin_fabsf(minimum[c]),
                      high = __builtin_fabsf(__builtin_fmaf(scale[c], top, minimum[c]));
          reach = reach > low ? reach : low;
          reach = reach > high ? reach : high;
        }
        largest[c] = reach > largest[c] ? reach : largest[c];
      }
    }
    for (int c = 0; c < kPanel; ++c) {
      group_scale[c] = largest[c] * (1 / 127.0f);
      inverse[c] = group_scale[c] > 0 ? 1 / group_scale[c] : 0;
    }
    for (int span = first; span < last; ++span) {
      const float *scale = chunk->scale + span * kPanel, *minimum = chunk->minimum + span * kPanel;
      int16_t by[kDepth * kPanel], plus[kDepth * kPanel];  // as the bytes lie
      for (int c = 0; c < kPanel; ++c) {
        const float unit = scale[c] * inverse[c], b = unit * (256 * half);
        float p = kFoldZero;
        if (t.minimum) p = __builtin_fmaf(minimum[c] * 256.0f, inverse[c], __builtin_fmaf(unit, 256 * half, p));
        for (int i = 0; i < kDepth; ++i) {
          by[c * kDepth + i] = static_cast<int16_t>(__builtin_lrintf(b > 32767.0f ? 32767.0f : b));
          plus[c * kDepth + i] = static_cast<int16_t>(__builtin_lrintf(p));
        }
      }
      uint8_t* q = chunk->q + span * t.span * kPanel;
      for (int i = 0; i < t.span / kDepth; ++i, q += kDepth * kPanel) {
        for (int j = 0; j < kDepth * kPanel; ++j) {
          const int16_t value = static_cast<int16_t>((static_cast<int8_t>(q[j]) - centre) << shift);
          const int16_t scaled = static_cast<int16_t>(((value * by[j] >> 14) + 1) >> 1);
          q[j] = static_cast<uint8_t>(static_cast<uint16_t>(scaled + plus[j]) >> 8) ^ kFlip;
        }
      }
    }
  }
}
