// Scales of super-blocks: each group's scale is an integer code times the super-block's half-precision d (and its
// minimum a code times dmin). Codes are chosen by the error that they cause once the values are rounded with them, not
// by rounding the group's best scale; d and dmin then follow by least squares over the super-block, and codes again.
// Included by encode.inl after encode_fit.inl. kPer lanes are the groups of one super-block.

// The sum over each super-block, in all its lanes.
template <int kPer>
LD_INLINE V super_sum(V v) {
  V result;
  for (int first = 0; first < kLanes; first += kPer) {
    float sum = 0;
    for (int i = 0; i < kPer; ++i) sum += v[first + i];
    for (int i = 0; i < kPer; ++i) result[first + i] = sum;
  }
  return result;
}

// The value of largest magnitude of each super-block, in all its lanes.
template <int kPer>
LD_INLINE V super_peak(V v) {
  V result;
  for (int first = 0; first < kLanes; first += kPer) {
    float peak = 0;
    for (int i = 0; i < kPer; ++i) {
      const float value = v[first + i];
      peak = __builtin_fabsf(value) > __builtin_fabsf(peak) ? value : peak;
    }
    for (int i = 0; i < kPer; ++i) result[first + i] = peak;
  }
  return result;
}

// Rounded to half precision; what is too large becomes its largest value.
LD_INLINE V rounded_to_half(V v) {
  const V held = clamp(v, -kHalfMax, kHalfMax);
  V result;
  for (int i = 0; i < kLanes; ++i) result[i] = half_to_float(float_to_half(held[i]));
  return result;
}

// ---- one scale per group ----

struct SuperScale {
  V d;     // half precision, the same for a super-block
  V code;  // integers
};

// Codes are kFirstCode to kLastCode, kFirstCode being negative and of the larger magnitude.
template <class Levels, int kPer, int kFirstCode, int kLastCode, int N>
SuperScale best_super_scale(const Groups<N>& g, V scale, int rounds) {
  SuperScale best = {};
  V least = broadcast(__builtin_inff());
  V d = super_peak<kPer>(scale) * (1.0f / kFirstCode);
  for (int round = 0; round < rounds; ++round) {
    d = rounded_to_half(d);
    const V centre = clamp(nearest(scale * inverse(d)), kFirstCode, kLastCode);
    V code = {}, error = broadcast(__builtin_inff());
    for (int delta = -1; delta <= 1; ++delta) {
      const V candidate = clamp(centre + static_cast<float>(delta), kFirstCode, kLastCode);
      const V caused = error_of_scale<Levels, N>(g, d * candidate);
      code = caused < error ? candidate : code;
      error = smaller(caused, error);
    }
    const V total = super_sum<kPer>(error);
    const I better = total < least;
    best.d = better ? d : best.d;
    best.code = better ? code : best.code;
    least = smaller(total, least);
    // Least squares for d, with the levels and codes of this round.
    const Fit sums = fit<Levels, N>(g, inverse(d * code));
    d = super_sum<kPer>(code * sums.a) * inverse(super_sum<kPer>(code * code * sums.b));
  }
  Lengths sums = lengths_of_scale<Levels, N>(g, best.d * best.code);
  sums = {super_sum<kPer>(sums.xx), super_sum<kPer>(sums.xy)};
  best.d = rounded_to_half(best.d * sums.stretch());
  return best;
}

// ---- scale and minimum per group ----

struct SuperAffine {
  V d, dmin;         // half precision, the same for a super-block
  V code, min_code;  // 0 to kTopCode
};

// Starts of d, as shares of what gives the largest group scale the largest code: below 1 that group is cut short and
// the others are told apart better.
template <int kTop, int kPer, int kTopCode, int N>
SuperAffine best_super_affine(const Groups<N>& g, Affine wanted, const float* starts, int n_starts, int rounds) {
  SuperAffine best = {};
  V least = broadcast(__builtin_inff());
  V weight = {}, weighted_x = {};
  for (int i = 0; i < N; ++i) {
    weight += g.w[i];
    weighted_x += g.w[i] * g.x[i];
  }
  const V inverse_weight = inverse(weight);
  for (int start = 0; start < n_starts; ++start) {
    V d = super_peak<kPer>(wanted.s) * (starts[start] / kTopCode),
      dmin = super_peak<kPer>(wanted.m) * (1.0f / kTopCode);
    for (int round = 0; round < rounds; ++round) {
      d = rounded_to_half(d);
      dmin = rounded_to_half(dmin);
      const V inverse_dmin = inverse(dmin);
      const V centre = clamp(nearest(wanted.s * inverse(d)), 0, kTopCode);
      const V min_centre = clamp(nearest(wanted.m * inverse_dmin), 0, kTopCode);
      V code = {}, min_code = {}, error = broadcast(__builtin_inff());
      for (int delta = -1; delta <= 1; ++delta) {
        const V candidate = clamp(centre + static_cast<float>(delta), 0, kTopCode), s = d * candidate;
        V min_candidate = min_centre;
        for (int again = 0; again < 2; ++again) {
          const V caused = error_of_affine<kTop, N>(g, s, dmin * min_candidate);
          const I better = caused < error;
          code = better ? candidate : code;
          min_code = better ? min_candidate : min_code;
          error = better ? caused : error;
          // The minimum that suits the levels just used.
          const AffineSums t = affine_sums<kTop, N>(g, inverse(s), dmin * min_candidate);
          min_candidate = clamp(nearest((s * t.level - weighted_x) * inverse_weight * inverse_dmin), 0, kTopCode);
        }
      }
      const V total = super_sum<kPer>(error);
      const I better = total < least;
      best.d = better ? d : best.d;
      best.dmin = better ? dmin : best.dmin;
      best.code = better ? code : best.code;
      best.min_code = better ? min_code : best.min_code;
      least = smaller(total, least);
      // Least squares for both: x ~ d * (code * level) - dmin * min_code.
      const AffineSums t = affine_sums<kTop, N>(g, inverse(d * code), dmin * min_code);
      const V aa = super_sum<kPer>(code * code * t.level2), ab = super_sum<kPer>(code * min_code * t.level);
      const V bb = super_sum<kPer>(min_code * min_code * weight);
      const V ax = super_sum<kPer>(code * t.level_x), bx = super_sum<kPer>(min_code * weighted_x);
      const V determinant = aa * bb - ab * ab;
      const I both = determinant > aa * bb * 1e-6f;  // else one of them does nothing
      const V factor = inverse(determinant);
      d = both ? (ax * bb - bx * ab) * factor : ax * inverse(aa);
      dmin = both ? (ax * ab - bx * aa) * factor : V{};
    }
  }
  Lengths sums = lengths_of_affine<kTop, N>(g, best.d * best.code, best.dmin * best.min_code);
  sums = {super_sum<kPer>(sums.xx), super_sum<kPer>(sums.xy)};
  best.d = rounded_to_half(best.d * sums.stretch());
  best.dmin = rounded_to_half(best.dmin * sums.stretch());
  return best;
}
