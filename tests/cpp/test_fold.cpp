// Fast arithmetic, for every kernel row that this processor runs: the folded weights against a plain statement of what
// they must be, products against double precision, rows of kernels bit for bit against each other, and results against
// themselves with other rows and threads. Not here: exact arithmetic (test_gemm.cpp).
#include <limits>

#include "cpu/fold.h"
#include "gemm_tools.h"

using namespace ld;

namespace {

// Input of which every value is its own group's only one: one row per value of k, so that outputs are single weights.
std::vector<float> identity(int k) {
  std::vector<float> x(static_cast<size_t>(k) * k);
  for (int i = 0; i < k; ++i) x[static_cast<size_t>(i) * k + i] = 127.0f;
  return x;
}

// [n, k] the weights that a row's fast arithmetic multiplies with.
std::vector<float> folded(const KernelRow& row, const Matrix& matrix) {
  const std::vector<float> y = multiply(row, *pack(row, matrix), identity(matrix.k), matrix.k, 1, Math::fast);
  std::vector<float> w(y.size());
  for (int i = 0; i < matrix.k; ++i) {
    for (int c = 0; c < matrix.n; ++c)
      w[static_cast<size_t>(c) * matrix.k + i] = y[static_cast<size_t>(i) * matrix.n + c] / 127.0f;
  }
  return w;
}

// The input as fast arithmetic sees it, in plain arithmetic.
std::vector<float> grouped(const std::vector<float>& x, int k) {
  std::vector<float> out(x.size());
  for (size_t row = 0; row < x.size(); row += k) {
    for (int g = 0; g < k; g += kGroup) {
      const int end = std::min(g + kGroup, k);
      float max = 0;
      for (int i = g; i < end; ++i) max = std::max(max, std::fabs(x[row + i]));
      const float inverse = 127.0f / max, scale = max / 127.0f;
      for (int i = g; i < end && max > 0; ++i) out[row + i] = std::nearbyintf(x[row + i] * inverse) * scale;
    }
  }
  return out;
}

}  // namespace

TEST(folded_weights_are_the_nearest_multiples_of_their_scale) {
  for (TensorType type : kTypes) {
    if (!is_integer(type)) continue;
    for (int k : {256, 1280}) {
      const Matrix matrix(type, 37, k, 3);
      const std::vector<float> w = matrix.decoded();
      for (const KernelRow* row : supported_rows()) {
        const std::vector<float> f = folded(*row, matrix);
        for (int c = 0; c < matrix.n; ++c) {
          for (int g = 0; g < k; g += kGroup) {
            // The scale of a group is not visible: the largest weight is at most 127 of it, so it is at least this.
            float largest = 0, error = 0;
            for (int i = g; i < g + kGroup; ++i) {
              largest = std::max(largest, std::fabs(w[static_cast<size_t>(c) * k + i]));
              error = std::max(error, std::fabs(w[static_cast<size_t>(c) * k + i] - f[static_cast<size_t>(c) * k + i]));
            }
            // Half a step of rounding, of a scale that reaches what the block scales allow: in these matrices values
            // up to twice the largest present. Factors of 16 bits add a hundredth.
            CHECK(error <= 0.51f * 2.1f * largest / 127.0f);
          }
        }
      }
    }
  }
}

TEST(folded_weights_of_known_blocks) {
  // One row of Q8_0: two groups, the first with scales 1 and 1/4, the second all zero but for one block.
  const int k = 256;
  Matrix matrix(TensorType::q8_0, 1, k, 1);
  for (int b = 0; b < k / 32; ++b) {
    matrix.set_half(b * 34, b == 0 ? 0x3c00 : b < 4 ? 0x3400 : b == 6 ? 0x3c00 : 0);
    for (int i = 0; i < 32; ++i) matrix.bytes[b * 34 + 2 + i] = static_cast<uint8_t>(i == 0 ? 127 : 4 * i - 60);
  }
  // Block scales allow 128 steps, so the scale of a group is 128 / 127 of its largest block scale.
  const double scale = 128.0 / 127.0;
  const std::vector<float> w = matrix.decoded();
  for (const KernelRow* row : supported_rows()) {
    const std::vector<float> f = folded(*row, matrix);
    for (int i = 0; i < k; ++i) CHECK(std::fabs(f[i] - std::nearbyint(w[i] / scale) * scale) < 1e-4);
  }
}

TEST(products_equal_the_double_product_of_what_was_folded) {
  struct Shape {
    int m, n, k;
  };
  const Shape shapes[] = {{1, 1, 256}, {3, 2, 768}, {7, 8, 1536}, {8, 33, 512}, {31, 31, 1280}, {65, 40, 256}};
  for (TensorType type : kTypes) {
    for (const Shape& s : shapes) {
      const Matrix matrix(type, s.n, s.k, 5 * s.m + s.n);
      const std::vector<float> x = random_floats(static_cast<size_t>(s.m) * s.k, s.k + s.m);
      for (const KernelRow* row : supported_rows()) {
        const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, s.m, 1, Math::fast);
        const bool integer = is_integer(type);
        check_product(row->name, matrix, integer ? folded(*row, matrix) : matrix.decoded(),
                      integer ? grouped(x, s.k) : x, s.m, y);
      }
    }
  }
}

TEST(groups_may_end_anywhere) {
  for (TensorType type :
       {TensorType::q4_0, TensorType::q5_1, TensorType::q8_0, TensorType::iq4_nl, TensorType::mxfp4}) {
    for (int k : {32, 64, 96, 160, 480, 544, 576, 1056}) {
      const Matrix matrix(type, 33, k, k);
      const std::vector<float> x = random_floats(9 * static_cast<size_t>(k), k + 1);
      for (const KernelRow* row : supported_rows()) {
        check_product(row->name, matrix, folded(*row, matrix), grouped(x, k), 9,
                      multiply(*row, *pack(*row, matrix), x, 9, 1, Math::fast));
      }
    }
  }
}

TEST(all_rows_of_kernels_agree_to_the_last_bit) {
  const auto rows = supported_rows();
  for (TensorType type : kTypes) {
    if (!is_integer(type)) continue;
    const int n = 70, k = 1280, m = 9;
    const Matrix matrix(type, n, k, 9);
    const std::vector<float> x = random_floats(static_cast<size_t>(m) * k, 10);
    const std::vector<float> first = multiply(*rows[0], *pack(*rows[0], matrix), x, m, 1, Math::fast);
    for (const KernelRow* row : rows) {
      const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, m, 1, Math::fast);
      if (!same_bits(first.data(), y.data(), y.size())) printf("    %s %s differs\n", row->name, matrix.traits->name);
      CHECK(same_bits(first.data(), y.data(), y.size()));
    }
  }
}

TEST(results_do_not_depend_on_rows_or_threads) {
  const int n = 150, k = 768, most = 300;
  const std::vector<float> x = random_floats(static_cast<size_t>(most) * k, 21);
  for (TensorType type : kTypes) {
    const Matrix matrix(type, n, k, 22);
    for (const KernelRow* row : supported_rows()) {
      const int rows = strcmp(row->name, "scalar") == 0 ? 40 : most;
      const auto packed = pack(*row, matrix, 2);
      const std::vector<float> all = multiply(*row, *packed, x, rows, 1, Math::fast);
      for (int threads : {2, 5}) {
        CHECK(same_bits(all.data(), multiply(*row, *packed, x, rows, threads, Math::fast).data(), all.size()));
      }
      for (int m : {1, 2, 6, 7, 13, 29}) {
        const std::vector<float> some(x.begin() + static_cast<size_t>(5) * k,
                                      x.begin() + static_cast<size_t>(5 + m) * k);
        const std::vector<float> y = multiply(*row, *packed, some, m, m % 2 + 1, Math::fast);
        CHECK(same_bits(all.data() + static_cast<size_t>(5) * n, y.data(), y.size()));
      }
    }
  }
}

TEST(a_value_that_is_not_finite_reaches_the_outputs) {
  const int k = 256;
  for (TensorType type : kTypes) {
    const Matrix matrix(type, 5, k, 11);
    for (const KernelRow* row : supported_rows()) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        std::vector<float> x = random_floats(3 * k, 4);
        x[k + 77] = bad;
        const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, 3, 1, Math::fast);
        for (int c = 0; c < 5; ++c) {
          CHECK(std::isfinite(y[c]) && !std::isfinite(y[5 + c]) && std::isfinite(y[10 + c]));
        }
      }
    }
  }
}
