// Norms, activations, rotary positions and the statistics of logit rows: the one source of every vector kernel row.
// vector_<isa>.cpp includes this once, after defining LD_WIDTH (floats per vector), LD_ROWS (query rows of an attention
// tile), LD_TABLE (the table's name) and, in ld's anonymous namespace, the types vf and vi and the functions fma and
// maximum(a, b) = a > b ? a : b, so that a NaN in b stays. Everything here has internal linkage: no function compiled
// wide is shared with other files, and no inline function of the standard library is used.
//
// Sums run in vectors and end in double, lane by lane, so their order depends on the width alone.

typedef float vfu __attribute__((vector_size(4 * LD_WIDTH), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LD_WIDTH), may_alias));

#define LD_INLINE static inline __attribute__((always_inline))

constexpr int kWidth = LD_WIDTH;
constexpr int kSumGroup = 64;  // vectors that are summed in float32 before the sum goes to double

LD_INLINE vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
LD_INLINE void store(float* p, vf v) { *reinterpret_cast<vfu*>(p) = v; }
LD_INLINE vf broadcast(float x) { return x - vf{}; }  // folds to a plain broadcast, unlike x + 0

// The first n values of p, then `fill`.
LD_INLINE vf load_part(const float* p, int n, float fill) {
  vf v = broadcast(fill);
  __builtin_memcpy(&v, p, sizeof(float) * n);
  return v;
}
LD_INLINE void store_part(float* p, int n, vf v) { __builtin_memcpy(p, &v, sizeof(float) * n); }

LD_INLINE double total(vf v) {
  double sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += v[i];
  return sum;
}

LD_INLINE float largest(vf v) {
  float a[kWidth];
  store(a, v);
  for (int half = kWidth / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
  }
  return a[0];
}

LD_INLINE float sum_lanes(vf v) {
  float a[kWidth];
  store(a, v);
  for (int half = kWidth / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}

// exp(x) within 2 ulp; exactly 0 below -126 ln 2 (no denormal results), infinity above the range, NaN stays.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 p(r), p fitted for relative error 4e-9.
LD_INLINE vf exponential(vf x) {
  const vf magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const vf t = fma(x, broadcast(1.44269504f), magic);
  const vf n = t - magic;
  vf r = fma(n, broadcast(-0.693359375f), x);  // ln 2 in two parts; n times the first is exact
  r = fma(n, broadcast(2.12194440e-4f), r);
  vf p = broadcast(0.0013813143f);
  p = fma(p, r, broadcast(0.0083694188f));
  p = fma(p, r, broadcast(0.041668456f));
  p = fma(p, r, broadcast(0.16666515f));
  p = fma(p, r, broadcast(0.49999994f));
  p = fma(p, r * r, r) + 1.0f;
  const vf y = reinterpret_cast<vf>(reinterpret_cast<vu>(p) + (reinterpret_cast<vu>(t) << 23));
  const vf low = x < broadcast(-87.336544f) ? vf{} : y;
  const vf high = x > broadcast(88.722839f) ? broadcast(__builtin_inff()) : low;
  return x != x ? x : high;
}

// ---- what a linear layer reads ----

// 1 - erf(t) for t >= 0 as u p(u) exp(-t^2), u = 1 / (1 + 0.4 t), p fitted for relative error 1e-8.
LD_INLINE vf complementary_error(vf t) {
  const vf u = 1.0f / fma(broadcast(0.4f), t, broadcast(1.0f));
  vf p = broadcast(-0.029594337567687035f);
  p = fma(p, u, broadcast(0.19801321625709534f));
  p = fma(p, u, broadcast(-0.4988114833831787f));
  p = fma(p, u, broadcast(0.547435462474823f));
  p = fma(p, u, broadcast(-0.2843666970729828f));
  p = fma(p, u, broadcast(0.27206623554229736f));
  p = fma(p, u, broadcast(0.1296796053647995f));
  p = fma(p, u, broadcast(0.2149191051721573f));
  p = fma(p, u, broadcast(0.22495202720165253f));
  p = fma(p, u, broadcast(0.22570690512657166f));
  return p * u * exponential(-t * t);
}

// tanh(x) of |x| < 0.6 as x + x^3 p(x^2), p fitted for relative error 3e-9, else as 1 - 2 / (exp(2 |x|) + 1).
LD_INLINE vf hyperbolic_tangent(vf x) {
  const vf square = x * x, size = maximum(x, -x);
  vf p = broadcast(-0.0058951504f);
  p = fma(p, square, broadcast(0.020795964f));
  p = fma(p, square, broadcast(-0.053783827f));
  p = fma(p, square, broadcast(0.13331924f));
  p = fma(p, square, broadcast(-0.33333299f));
  const vf far = 1.0f - 2.0f / (exponential(size * 2.0f) + 1.0f);
  return size < broadcast(0.6f) ? fma(x * square, p, x) : x < vf{} ? -far : far;
}

template <Activation kind>
LD_INLINE vf activate(vf x) {
  if (kind == Activation::silu) return x / (1.0f + exponential(-x));
  if (kind ==
      Activation::gelu_tanh) {  // x (1 + tanh(a)) / 2 = x / (1 + exp(-2 a)), a = sqrt(2 / pi) (x + 0.044715 x^3)
    const vf cubic = fma(x * x, broadcast(0.044715f), broadcast(1.0f)) * x;
    return x / (1.0f + exponential(cubic * -1.5957691216f));
  }
  if (kind == Activation::gelu_erf) {  // x Phi(x); Phi of a negative x is half the complement, free of cancellation
    const vf t = maximum(x, -x) * 0.70710678f;
    const vf half = 0.5f * complementary_error(t);
    return x * (x < vf{} ? half : 1.0f - half);
  }
  if (kind == Activation::relu) return maximum(x, vf{});
  if (kind == Activation::tanh) return hyperbolic_tangent(x);
  return x;
}

template <Activation kind>
void activate_row(const float* x, const float* up, int n, float* dst) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const vf y = activate<kind>(load(x + i));
    store(dst + i, up ? y * load(up + i) : y);
  }
  if (i < n) {
    const vf y = activate<kind>(load_part(x + i, n - i, 0));
    store_part(dst + i, n - i, up ? y * load_part(up + i, n - i, 0) : y);
  }
}

// Sum of (x - shift), or of its squares, over n values.
template <bool squares>
LD_INLINE double sum_row(const float* x, int n, float shift) {
  auto add = [&](vf & to, vf value) __attribute__((always_inline)) {
    value -= shift;
    to = squares ? fma(value, value, to) : to + value;
  };
  double result = 0;
  for (int i = 0; i < n;) {
    vf sum[4] = {};
    const int end = n - i < kSumGroup * kWidth ? n : i + kSumGroup * kWidth;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      for (int j = 0; j < 4; ++j) add(sum[j], load(x + i + j * kWidth));
    }
    for (; i + kWidth <= end; i += kWidth) add(sum[0], load(x + i));
    if (i < end) add(sum[1], load_part(x + i, end - i, shift));
    i = end;
    result += (total(sum[0]) + total(sum[1])) + (total(sum[2]) + total(sum[3]));
  }
  return result;
}

void norm_row(const float* x, const Norm& norm, int n, float* dst) {
  const bool centred = norm.kind == NormKind::layer;
  const float mean = centred ? static_cast<float>(sum_row<false>(x, n, 0) / n) : 0;
  const double variance = sum_row<true>(x, n, mean) / n;
  const float factor = static_cast<float>(1.0 / __builtin_sqrt(variance + norm.eps));
  auto apply = [&](vf value, vf weight, vf bias) __attribute__((always_inline)) {
    return fma((value - mean) * factor, weight, bias);
  };
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    store(dst + i, apply(load(x + i), load(norm.weight + i), norm.bias ? load(norm.bias + i) : vf{}));
  }
  if (i < n) {
    const vf bias = norm.bias ? load_part(norm.bias + i, n - i, 0) : vf{};
    store_part(dst + i, n - i, apply(load_part(x + i, n - i, 0), load_part(norm.weight + i, n - i, 0), bias));
  }
}

void produce(const LinearInput& input, int row, float* dst) {
  const ptrdiff_t offset = static_cast<ptrdiff_t>(input.pick ? input.pick[row] : row) * input.stride;
  const float* x = input.x + offset;
  const float* up = input.up ? input.up + offset : nullptr;
  const int n = input.width;
  const bool plain = input.activation == Activation::none && !up;
  if (!plain) {
    switch (input.activation) {
      case Activation::none:
        activate_row<Activation::none>(x, up, n, dst);
        break;
      case Activation::silu:
        activate_row<Activation::silu>(x, up, n, dst);
        break;
      case Activation::gelu_tanh:
        activate_row<Activation::gelu_tanh>(x, up, n, dst);
        break;
      case Activation::gelu_erf:
        activate_row<Activation::gelu_erf>(x, up, n, dst);
        break;
      case Activation::relu:
        activate_row<Activation::relu>(x, up, n, dst);
        break;
      case Activation::tanh:
        activate_row<Activation::tanh>(x, up, n, dst);
        break;
    }
    x = dst;
  }
  if (input.norm.kind != NormKind::none) {
    norm_row(x, input.norm, n, dst);
  } else if (x != dst) {
    __builtin_memcpy(dst, x, sizeof(float) * n);
  }
}

void rotate(float* x, int heads, int head_dim, Rope kind, int dims, const float* cosines, const float* sines) {
  const int pairs = dims / 2;
  const int first = kind == Rope::half ? 1 : 2, second = kind == Rope::half ? pairs : 1;  // value 2 of a pair, from 1
  for (int h = 0; h < heads; ++h, x += head_dim) {
    for (int i = 0; i < pairs; ++i) {
      float* a = x + i * first;
      float* b = a + second;
      const float u = *a, v = *b;
      *a = u * cosines[i] - v * sines[i];
      *b = u * sines[i] + v * cosines[i];
    }
  }
}

// ---- a row of logits ----

constexpr int kGroup = kWidth;  // blocks whose float32 sums are kept in vectors before they go to double

bool scan(const float* x, int blocks, float* block_max) {
  vf finite[2] = {};  // 0 * x summed: NaN once a value was not finite
  for (int b = 0; b < blocks; ++b, x += kLogitBlock) {
    vf top[2] = {load(x), load(x + kWidth)};
    for (int i = 0; i < kLogitBlock; i += 2 * kWidth) {
      for (int j = 0; j < 2; ++j) {
        const vf value = load(x + i + j * kWidth);
        finite[j] = fma(value, vf{}, finite[j]);
        top[j] = maximum(value, top[j]);
      }
    }
    block_max[b] = largest(maximum(top[0], top[1]));
  }
  return total(finite[0] + finite[1]) == 0;
}

// The exponent is kept above -10,000, where exp is 0 all the same: 0 * infinity would spoil the weighted sum.
LD_INLINE vf exponent(const float* x, float max, float scale) {
  return maximum(broadcast(-1e4f), (load(x) - max) * scale);
}

double exponentials(const float* x, int blocks, float max, float scale, float* e, float* block_sum) {
  double weighted = 0;
  for (int first = 0; first < blocks; first += kGroup) {
    vf weights = {};
    for (int b = first; b < blocks && b < first + kGroup; ++b) {
      vf sum[2] = {};
      for (int i = b * kLogitBlock; i < (b + 1) * kLogitBlock; i += 2 * kWidth) {
        for (int j = 0; j < 2; ++j) {
          const vf d = exponent(x + i + j * kWidth, max, scale);
          const vf y = exponential(d);
          store(e + i + j * kWidth, y);
          sum[j] += y;
          weights = fma(y, d, weights);
        }
      }
      block_sum[b] = sum_lanes(sum[0] + sum[1]);
    }
    weighted += total(weights);
  }
  return weighted;
}

void above(const float* e, int blocks, const float threshold[kThresholds], int64_t count[kThresholds],
           double mass[kThresholds]) {
  for (int t = 0; t < kThresholds; ++t) {
    count[t] = 0;
    mass[t] = 0;
  }
  for (int first = 0; first < blocks; first += kGroup) {
    const int last = blocks < first + kGroup ? blocks : first + kGroup;
    vf sum[kThresholds] = {};
    vi negative_count[kThresholds] = {};
    for (ptrdiff_t i = first * kLogitBlock; i < last * kLogitBlock; i += kWidth) {
      const vf value = load(e + i);
#pragma GCC unroll 8
      for (int t = 0; t < kThresholds; ++t) {
        const vi reached = value >= broadcast(threshold[t]);
        sum[t] += reached ? value : vf{};
        negative_count[t] += reached;
      }
    }
    for (int t = 0; t < kThresholds; ++t) {
      mass[t] += total(sum[t]);
      for (int i = 0; i < kWidth; ++i) count[t] -= negative_count[t][i];
    }
  }
}

double cut(const float* x, int blocks, float max, float scale, float floor, float* e, float* block_sum) {
  double weighted = 0;
  for (int first = 0; first < blocks; first += kGroup) {
    vf weights = {};
    for (int b = first; b < blocks && b < first + kGroup; ++b) {
      vf sum = {};
      for (int i = b * kLogitBlock; i < (b + 1) * kLogitBlock; i += kWidth) {
        const vf value = load(e + i);
        const vf y = value < broadcast(floor) ? vf{} : value;
        store(e + i, y);
        sum += y;
        weights = fma(y, exponent(x + i, max, scale), weights);
      }
      block_sum[b] = sum_lanes(sum);
    }
    weighted += total(weights);
  }
  return weighted;
}

// What is not finite becomes NaN, as no bound shall hide it.
void cap(float* x, int n, float bound) {
  const auto capped = [&](vf value) __attribute__((always_inline)) {
    return fma(value, vf{}, hyperbolic_tangent(value / bound) * bound);
  };
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(x + i, capped(load(x + i)));
  if (i < n) store_part(x + i, n - i, capped(load_part(x + i, n - i, 0)));
}

float exponential_of(float x) { return exponential(broadcast(x))[0]; }

#include "cpu/attention.inl"
