// Norms, activations, rotary positions and logit statistics of every kernel row that this processor runs, against plain
// double-precision arithmetic, at ragged sizes; and kernel rows against each other.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/vector.h"
#include "test.h"

using namespace ld;

namespace {

const int kSizes[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 576, 768, 1536};

void for_each_row(const std::function<void(const char*, const VectorKernels&)>& check) {
  int count;
  const KernelRow* rows = kernel_rows(&count);
  for (int i = 0; i < count; ++i) {
    if (rows[i].supported()) {
      check(rows[i].name, *rows[i].vector);
    } else {
      printf("not run here: kernel row %s, the processor lacks it\n", rows[i].name);
    }
  }
}

std::vector<float> random_floats(size_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

LinearInput plain(const std::vector<float>& x, int width) {
  return {x.data(), width, width, nullptr, Norm{}, Activation::none, nullptr};
}

double reference_activation(Activation kind, double x) {
  switch (kind) {
    case Activation::none:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::tanh:
      return std::tanh(x);
  }
  return 0;
}

std::vector<double> reference_norm(const Norm& norm, const std::vector<double>& x) {
  double mean = 0, variance = 0;
  const size_t n = x.size();
  for (double value : x) mean += norm.kind == NormKind::layer ? value / n : 0;
  for (double value : x) variance += (value - mean) * (value - mean) / n;
  std::vector<double> y(n);
  for (size_t i = 0; i < n; ++i) {
    y[i] = (x[i] - mean) / std::sqrt(variance + norm.eps) * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
  }
  return y;
}

double ulps(float got, double expected) {
  const float nearest = static_cast<float>(expected);
  const double unit = std::nextafter(std::fabs(nearest), INFINITY) - std::fabs(nearest);
  return std::fabs(got - expected) / unit;
}

}  // namespace

TEST(exponential_is_within_two_ulps) {
  for_each_row([](const char* name, const VectorKernels& k) {
    double worst = 0;
    for (double x = -87.33; x < 88.72; x += 0.00137) {
      const float at = static_cast<float>(x);
      worst = std::max(worst, ulps(k.exp(at), std::exp(static_cast<double>(at))));
    }
    printf("    %s: exp off by at most %.2f ulp\n", name, worst);
    CHECK(worst <= 2);
    CHECK_EQ(k.exp(0), 1.0f);
    CHECK_EQ(k.exp(-88), 0.0f);
    CHECK_EQ(k.exp(kAbsent), 0.0f);
    CHECK_EQ(k.exp(-INFINITY), 0.0f);
    CHECK_EQ(k.exp(89), INFINITY);
    CHECK_EQ(k.exp(INFINITY), INFINITY);
    CHECK(std::isnan(k.exp(NAN)));
    CHECK(std::isnan(k.exp(std::bit_cast<float>(0x7fc12345u))));  // whatever its payload
  });
}

TEST(activations_match_double_arithmetic) {
  for_each_row([](const char* name, const VectorKernels& k) {
    for (Activation kind :
         {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::tanh}) {
      std::vector<float> x;
      for (double value = -14; value <= 14; value += 0.0031) x.push_back(static_cast<float>(value));
      x.insert(x.end(), {0.0f, -0.0f, 1e-30f, -1e-30f, 60, -60, 1e4f, -1e4f});
      const int n = static_cast<int>(x.size());
      LinearInput input = plain(x, n);
      input.activation = kind;
      std::vector<float> y(n);
      k.produce(input, 0, y.data());
      double worst = 0;
      for (int i = 0; i < n; ++i) {
        const double expected = reference_activation(kind, x[i]);
        worst = std::max(worst, std::fabs(y[i] - expected) / std::max(1.0, std::fabs(expected)));
      }
      printf("    %s: activation %d off by at most %.1e\n", name, static_cast<int>(kind), worst);
      CHECK(worst <= 4e-7);  // a few float32 roundings
    }
  });
}

TEST(produce_matches_double_arithmetic_at_ragged_sizes) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (int n : kSizes) {
      const auto x = random_floats(n * 3 + 8, n), up = random_floats(n * 3 + 8, n + 1);
      const auto weight = random_floats(n, n + 2), bias = random_floats(n, n + 3);
      const int32_t pick[] = {2, 0};
      for (NormKind norm : {NormKind::none, NormKind::rms, NormKind::layer}) {
        for (Activation activation : {Activation::none, Activation::silu, Activation::gelu_tanh, Activation::gelu_erf,
                                      Activation::relu, Activation::tanh}) {
          for (int variant = 0; variant < 4; ++variant) {
            LinearInput input = plain(x, n);
            input.stride = n + 2;  // rows that are not contiguous
            if (variant & 1) input.up = up.data();
            if (variant & 2) input.pick = pick;
            input.norm = {norm, weight.data(), variant & 1 ? bias.data() : nullptr, 1e-5f};
            input.activation = activation;
            const int row = 1, source = variant & 2 ? pick[row] : row;
            std::vector<float> y(n + 1, 77);
            k.produce(input, row, y.data());
            std::vector<double> expected(n);
            for (int i = 0; i < n; ++i) {
              expected[i] = reference_activation(activation, x[source * (n + 2) + i]);
              if (input.up) expected[i] *= up[source * (n + 2) + i];
            }
            if (norm != NormKind::none) expected = reference_norm(input.norm, expected);
            double worst = 0;
            for (int i = 0; i < n; ++i) {
              worst = std::max(worst, std::fabs(y[i] - expected[i]) / (1 + std::fabs(expected[i])));
            }
            // A layer norm over two nearly equal values amplifies the rounding of the activation before it.
            CHECK(worst <= (n < 4 && norm == NormKind::layer ? 1e-3 : 5e-6));
            CHECK_EQ(y[n], 77.0f);
          }
        }
      }
    }
  });
}

TEST(norms_keep_their_precision_with_a_large_mean) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (NormKind kind : {NormKind::rms, NormKind::layer}) {
      const int n = 4096;
      auto x = random_floats(n, 5);
      for (float& value : x) value += 30;
      const std::vector<float> weight(n, 1.0f);
      LinearInput input = plain(x, n);
      input.norm = {kind, weight.data(), nullptr, 1e-6f};
      std::vector<float> y(n);
      k.produce(input, 0, y.data());
      const auto expected = reference_norm(input.norm, std::vector<double>(x.begin(), x.end()));
      double error = 0, size = 0;
      for (int i = 0; i < n; ++i) {
        error += (y[i] - expected[i]) * (y[i] - expected[i]);
        size += expected[i] * expected[i];
      }
      CHECK(std::sqrt(error / size) <= 2e-6);
    }
  });
}

TEST(rotation_follows_its_definition) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (int head_dim : {2, 4, 6, 8, 16, 64, 80, 128}) {
      for (int dims = 2; dims <= head_dim; dims += head_dim > 16 ? head_dim / 2 : 2) {
        for (Rope kind : {Rope::interleaved, Rope::half}) {
          const int heads = 3;
          const auto x = random_floats(heads * head_dim, head_dim), angle = random_floats(dims / 2, dims);
          std::vector<float> cosines, sines, y = x;
          for (float a : angle) {
            cosines.push_back(std::cos(a));
            sines.push_back(std::sin(a));
          }
          k.rotate(y.data(), heads, head_dim, kind, dims, cosines.data(), sines.data());
          for (int h = 0; h < heads; ++h) {
            std::vector<double> expected(x.begin() + h * head_dim, x.begin() + (h + 1) * head_dim);
            for (int i = 0; i < dims / 2; ++i) {
              const int a = kind == Rope::half ? i : 2 * i, b = kind == Rope::half ? i + dims / 2 : 2 * i + 1;
              const double u = x[h * head_dim + a], v = x[h * head_dim + b];
              expected[a] = u * std::cos(angle[i]) - v * std::sin(angle[i]);
              expected[b] = u * std::sin(angle[i]) + v * std::cos(angle[i]);
            }
            for (int i = 0; i < head_dim; ++i) CHECK(std::fabs(y[h * head_dim + i] - expected[i]) <= 1e-6);
          }
        }
      }
    }
  });
}

TEST(logit_statistics_match_double_arithmetic) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (int blocks : {1, 2, 31, 32, 33, 65}) {
      const int n = blocks * kLogitBlock;
      auto x = random_floats(n, blocks, 4);
      x[n - 1] = kAbsent;
      std::vector<float> e(n), block_max(blocks), block_sum(blocks);
      CHECK(k.scan(x.data(), blocks, block_max.data()));
      float max = kAbsent;
      for (int b = 0; b < blocks; ++b) {
        const float expected = *std::max_element(x.begin() + b * kLogitBlock, x.begin() + (b + 1) * kLogitBlock);
        CHECK_EQ(block_max[b], expected);
        max = std::max(max, expected);
      }
      for (float scale : {1.0f, 0.7f, 1e30f}) {
        const double weighted = k.exponentials(x.data(), blocks, max, scale, e.data(), block_sum.data());
        double expected = 0, expected_weighted = 0, sum = 0;
        for (int i = 0; i < n; ++i) {
          const double d = (static_cast<double>(x[i]) - max) * scale;
          expected += std::exp(d);
          if (d > -87) expected_weighted += std::exp(d) * d;
        }
        for (float part : block_sum) sum += part;
        CHECK(std::fabs(sum - expected) <= 1e-6 * expected);
        CHECK(std::fabs(weighted - expected_weighted) <= 2e-6 * (std::fabs(expected_weighted) + 1));
        CHECK_EQ(e[n - 1], 0.0f);
      }

      k.exponentials(x.data(), blocks, max, 1, e.data(), block_sum.data());
      const float threshold[kThresholds] = {1e-30f, 1e-6f, 1e-4f, 1e-3f, 0.01f, 0.1f, 0.5f, 1.0f};
      int64_t count[kThresholds];
      double mass[kThresholds];
      k.above(e.data(), blocks, threshold, count, mass);
      for (int t = 0; t < kThresholds; ++t) {
        int64_t expected_count = 0;
        double expected_mass = 0;
        for (float value : e) {
          expected_count += value >= threshold[t];
          expected_mass += value >= threshold[t] ? value : 0;
        }
        CHECK_EQ(count[t], expected_count);
        CHECK(std::fabs(mass[t] - expected_mass) <= 2e-6 * expected_mass);
      }

      const float floor = 0.01f;
      const auto before = e;
      const double weighted = k.cut(x.data(), blocks, max, 1, floor, e.data(), block_sum.data());
      double expected_weighted = 0;
      for (int i = 0; i < n; ++i) {
        CHECK_EQ(e[i], before[i] < floor ? 0 : before[i]);
        if (e[i] > 0) expected_weighted += std::exp(double{x[i]} - max) * (double{x[i]} - max);
      }
      CHECK(std::fabs(weighted - expected_weighted) <= 2e-6 * (std::fabs(expected_weighted) + 1));
    }
  });
}

TEST(caps_are_bounded_and_precise) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (int n : {1, 7, 16, 301}) {
      std::vector<float> x(n);
      for (int i = 0; i < n; ++i) x[i] = static_cast<float>((i - n / 2) * 1.37 + 1e-4);
      std::vector<float> y = x;
      k.cap(y.data(), n, 30);
      for (int i = 0; i < n; ++i) {
        const double expected = 30 * std::tanh(double{x[i]} / 30);
        CHECK(std::fabs(y[i] - expected) <= 4e-7 * std::fabs(expected));
      }
    }
    std::vector<float> wrong = {INFINITY, -INFINITY, NAN, 1e30f};
    k.cap(wrong.data(), 4, 30);
    CHECK(std::isnan(wrong[0]) && std::isnan(wrong[1]) && std::isnan(wrong[2]));
    CHECK_EQ(wrong[3], 30.0f);
  });
}

TEST(mixtures_of_vectors_do_not_depend_on_the_rows_beside_them) {
  constexpr int kRows = 13, kWidth = 48, kCount = 100;
  for_each_row([&](const char*, const VectorKernels& k) {
    const auto p = random_floats(kRows * kMixed, 3), v = random_floats(kCount * kWidth, 4);
    std::vector<float> together(kRows * kWidth, 0.5f);
    k.mix(p.data(), kRows, v.data(), kWidth, kCount, together.data());
    for (int r = 0; r < kRows; ++r) {
      std::vector<float> alone(kWidth, 0.5f);
      k.mix(&p[r * kMixed], 1, v.data(), kWidth, kCount, alone.data());
      for (int c = 0; c < kWidth; ++c) {
        double expected = 0.5;
        for (int i = 0; i < kCount; ++i) expected += double{p[r * kMixed + i]} * v[i * kWidth + c];
        CHECK_EQ(alone[c], together[r * kWidth + c]);
        CHECK(std::fabs(alone[c] - expected) <= 1e-4);
      }
    }
  });
}

TEST(values_that_are_not_finite_are_seen) {
  for_each_row([](const char*, const VectorKernels& k) {
    for (float bad : {NAN, INFINITY, -INFINITY, -NAN}) {
      for (int at : {0, 1, 15, 16, 255, 256, 511}) {
        std::vector<float> x(512, 1.0f), block_max(2);
        x[at] = bad;
        CHECK(!k.scan(x.data(), 2, block_max.data()));
      }
    }
  });
}

TEST(kernel_rows_agree) {
  const int n = 777;
  const auto x = random_floats(n, 1), up = random_floats(n, 2), weight = random_floats(n, 3);
  LinearInput input = plain(x, n);
  input.up = up.data();
  input.activation = Activation::silu;
  input.norm = {NormKind::rms, weight.data(), nullptr, 1e-5f};
  std::vector<float> scalar(n);
  vector_scalar.produce(input, 0, scalar.data());
  for_each_row([&](const char*, const VectorKernels& k) {
    std::vector<float> y(n);
    k.produce(input, 0, y.data());
    for (int i = 0; i < n; ++i) CHECK(std::fabs(y[i] - scalar[i]) <= 2e-6 * (1 + std::fabs(scalar[i])));
  });
}
