// The searches of the quantiser, sixteen groups of values side by side: lane l of every vector belongs to group l, so
// there are no sums across lanes and no branches. All rows of instruction sets execute the same operations in the same
// order without fusing, so they write the same bytes. Included by encode.inl, inside its namespace.
//
// Every search minimises the weighted squared error sum_i w_i (x_i - y_i)^2: a grid of candidate scales rounds the
// values to levels, least squares gives each candidate the best scale (and offset) for its levels, and the winner is
// refined by repeating both steps, which never increases the error. Not here: how levels and scales are stored.

constexpr int kLanes = 16;
typedef float V __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));

#define LD_INLINE static inline __attribute__((always_inline))

LD_INLINE V broadcast(float x) { return x - V{}; }
LD_INLINE V smaller(V a, V b) { return a < b ? a : b; }
LD_INLINE V larger(V a, V b) { return a > b ? a : b; }
LD_INLINE V magnitude(V a) { return larger(a, -a); }

// 1 / a, and 0 for what has no finite inverse.
LD_INLINE V inverse(V a) {
  const V tiny = broadcast(0x1p-126f);
  return magnitude(a) < tiny ? V{} : 1.0f / a;
}

// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
LD_INLINE V nearest(V x) {
  const V magic = broadcast(12582912.0f);
  return (x + magic) - magic;
}

LD_INLINE V clamp(V x, float low, float high) { return smaller(larger(x, broadcast(low)), broadcast(high)); }

// Sixteen groups of N values and their weights; unused lanes hold zeros of weight 1.
template <int N>
struct Groups {
  V x[N], w[N];
};

// ---- levels: the numbers that a scale multiplies ----

template <int kLow, int kHigh>
struct Integers {
  static constexpr float kFirst = kLow, kLast = kHigh;
  LD_INLINE V level(V t) { return clamp(nearest(t), kLow, kHigh); }
  LD_INLINE V code(V t) { return level(t) - broadcast(kLow); }  // from 0
};

// The codebook of IQ4_NL: the nearest of sixteen levels, found by counting the midpoints below.
struct Codebook {
  static constexpr float kFirst = kCodebook[0], kLast = kCodebook[15];
  LD_INLINE V level(V t) {
    V result = broadcast(kCodebook[0]);
#pragma GCC unroll 15
    for (int i = 1; i < 16; ++i) {
      result = t > broadcast(0.5f * (kCodebook[i - 1] + kCodebook[i])) ? broadcast(kCodebook[i]) : result;
    }
    return result;
  }
  LD_INLINE V code(V t) {
    V result = {};
#pragma GCC unroll 15
    for (int i = 1; i < 16; ++i) {
      result = t > broadcast(0.5f * (kCodebook[i - 1] + kCodebook[i])) ? broadcast(static_cast<float>(i)) : result;
    }
    return result;
  }
};

// ---- one scale: y = s * level ----

// Candidate scales map the value of largest magnitude to each of these, in units of the first level: beyond 1 it is cut
// off. Negative ones map it to the other end.
constexpr float kPeaks[] = {0.85f, 0.9f,  0.94f, 0.97f, 1.0f, 1.03f, 1.06f, 1.1f,  1.14f,
                            1.18f, 1.23f, 1.28f, 1.34f, 1.4f, 1.5f,  1.65f, 1.85f, 2.2f};

struct Fit {
  V a, b;  // sum w x level, sum w level^2
  V scale() const { return a * inverse(b); }
};

template <class Levels, int N>
LD_INLINE Fit fit(const Groups<N>& g, V inverse_scale) {
  Fit sums = {};
  for (int i = 0; i < N; ++i) {
    const V level = Levels::level(g.x[i] * inverse_scale), weighted = g.w[i] * level;
    sums.a += weighted * g.x[i];
    sums.b += weighted * level;
  }
  return sums;
}

template <class Levels, int N>
V best_scale(const Groups<N>& g, const float* peaks, int n_peaks, int rounds) {
  V peak = {};
  for (int i = 0; i < N; ++i) peak = magnitude(g.x[i]) > magnitude(peak) ? g.x[i] : peak;
  const V unit = broadcast(Levels::kFirst) * inverse(peak);
  V best = {}, most = {};
  for (int p = 0; p < 2 * n_peaks; ++p) {
    const Fit sums = fit<Levels, N>(g, unit * (p % 2 ? -peaks[p / 2] : peaks[p / 2]));
    const V scale = sums.scale(), gain = scale * sums.a;  // what the error is smaller by than with y = 0
    best = gain > most ? scale : best;
    most = larger(gain, most);
  }
  for (int i = 0; i < rounds; ++i) {
    const Fit sums = fit<Levels, N>(g, inverse(best));
    const V scale = sums.scale(), gain = scale * sums.a;
    best = gain > most ? scale : best;
    most = larger(gain, most);
  }
  return best;
}

// What least squares leaves out: rounded values that it scales are shorter than the values by the share of the error, in
// every row alike, and layer after layer multiplies that. The scale is stretched so that sum w x y = sum w x^2 again.
struct Lengths {
  V xx, xy;  // sums of w x^2 and w x y
  V stretch() const { return clamp(xx * inverse(xy), 1, 1.25f); }
};

template <class Levels, int N>
LD_INLINE Lengths lengths_of_scale(const Groups<N>& g, V scale) {
  const V inverse_scale = inverse(scale);
  Lengths sums = {};
  for (int i = 0; i < N; ++i) {
    const V weighted = g.w[i] * g.x[i];
    sums.xx += weighted * g.x[i];
    sums.xy += weighted * (scale * Levels::level(g.x[i] * inverse_scale));
  }
  return sums;
}

template <class Levels, int N>
LD_INLINE V error_of_scale(const Groups<N>& g, V scale) {
  const V inverse_scale = inverse(scale);
  V error = {};
  for (int i = 0; i < N; ++i) {
    const V rest = g.x[i] - scale * Levels::level(g.x[i] * inverse_scale);
    error += g.w[i] * rest * rest;
  }
  return error;
}

// ---- scale and offset: y = s * level - m, levels 0 to kTop ----

struct Affine {
  V s, m;
};

struct AffineSums {
  V level, level2, level_x;  // sums of w * level, w * level^2, w * level * x
};

template <int kTop, int N>
LD_INLINE AffineSums affine_sums(const Groups<N>& g, V inverse_scale, V offset) {
  AffineSums sums = {};
  for (int i = 0; i < N; ++i) {
    const V level = clamp(nearest((g.x[i] + offset) * inverse_scale), 0, kTop), weighted = g.w[i] * level;
    sums.level += weighted;
    sums.level2 += weighted * level;
    sums.level_x += weighted * g.x[i];
  }
  return sums;
}

// How much of the range is cut off below and above, in steps. -1: the range takes one level less, which finds values
// that lie on a coarser grid already. None first: what is as good keeps an offset that is one of the values.
constexpr float kCuts[] = {0.0f, -0.35f, -1.0f, 0.35f, 0.7f, 1.1f, 1.6f};

// To 11 significant bits, what half precision keeps of numbers that are not denormal there (Veltkamp's splitting).
LD_INLINE V eleven_bits(V x) {
  const V scaled = x * 8193.0f;
  return scaled - (scaled - x);
}

// With kBelow, m >= 0: zero is within the range, as types that store the minimum without a sign want it. Without, both
// are stored in half precision, and candidates compete as they will be stored.
template <int kTop, bool kBelow, int N>
Affine best_affine(const Groups<N>& g, int rounds) {
  V low = g.x[0], high = g.x[0], weight = {}, sum = {};
  for (int i = 0; i < N; ++i) {
    low = smaller(low, g.x[i]);
    high = larger(high, g.x[i]);
    weight += g.w[i];
    sum += g.w[i] * g.x[i];
  }
  if (kBelow) low = smaller(low, V{});
  if (kBelow) high = larger(high, V{});
  // Values are taken from `low` on, so that a large common offset costs no precision.
  const V shifted = sum - low * weight;
  Affine best = {V{}, -low};
  V most = {};
  const V step = (high - low) * (1.0f / kTop), inverse_weight = inverse(weight);

  const auto consider = [&](V inverse_scale, V offset) __attribute__((always_inline)) {
    const AffineSums t = affine_sums<kTop, N>(g, inverse_scale, offset);
    const V level_x = t.level_x - low * t.level;
    const V variance = t.level2 - t.level * t.level * inverse_weight;
    V s = (level_x - t.level * shifted * inverse_weight) * inverse(larger(variance, V{}));
    V m = (t.level * s - shifted) * inverse_weight - low;  // y = s * level - m
    if (kBelow) {  // the best scale without an offset, where the best offset has the wrong sign
      const I above = m < V{};
      s = above ? t.level_x * inverse(t.level2) : s;
      m = above ? V{} : m;
    } else {
      s = eleven_bits(s);
      m = eleven_bits(m);
    }
    // The error is smaller by this than with y = low.
    const V c = m + low;  // y - low = s * level - c
    const V gain = 2 * (s * level_x - c * shifted) - (s * s * t.level2 - 2 * s * c * t.level + c * c * weight);
    const I better = (gain > most * (1 + 0x1p-20f)) & (s > V{});  // more than rounding errors make
    best.s = better ? s : best.s;
    best.m = better ? m : best.m;
    most = better ? gain : most;
  };
  for (float below : kCuts) {
    for (float above : kCuts) {
      if (below + above < -1.0f) continue;
      const V offset = -low - below * step;
      consider(inverse(step * (1 - (below + above) / kTop)), kBelow ? larger(offset, V{}) : offset);
    }
  }
  for (int i = 0; i < rounds; ++i) consider(inverse(best.s), best.m);
  return best;
}

template <int kTop, int N>
LD_INLINE Lengths lengths_of_affine(const Groups<N>& g, V s, V m) {
  const V inverse_scale = inverse(s);
  Lengths sums = {};
  for (int i = 0; i < N; ++i) {
    const V weighted = g.w[i] * g.x[i];
    sums.xx += weighted * g.x[i];
    sums.xy += weighted * (s * clamp(nearest((g.x[i] + m) * inverse_scale), 0, kTop) - m);
  }
  return sums;
}

template <int kTop, int N>
LD_INLINE V error_of_affine(const Groups<N>& g, V s, V m) {
  const V inverse_scale = inverse(s);
  V error = {};
  for (int i = 0; i < N; ++i) {
    const V shifted = g.x[i] + m, rest = shifted - s * clamp(nearest(shifted * inverse_scale), 0, kTop);
    error += g.w[i] * rest * rest;
  }
  return error;
}
