// Products of 16-bit floats on the GPU's tensor cores, run by the emulator: fragments as ldmatrix lays them out, and against
// double precision, with the float32 kernel as the measure, weights in float16 and bfloat16 at odd shapes, in every shape
// of tile, over many magnitudes, and what a row's neighbours or values that are not finite may change.
// Not tested here: in which way a GPU's tensor cores round their sums.
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/kernels.h"
#include "gemm_tools.h"
#include "quant/half.h"
#include "test.h"

using namespace ld;
using cuda::Form;

namespace {

constexpr float kUntouched = 7.0f;

struct SplitRows {
  SplitRows(Form form, const std::vector<float>& x, ptrdiff_t stride, int k, int rows)
      : words(static_cast<size_t>(rows) * cuda::split_blocks(k) * cuda::kMostParts * 16 + 4),
        scale(static_cast<size_t>(rows) * cuda::split_blocks(k)) {
    at = {reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(words.data()) + 15) / 16 * 16), scale.data()};
    if (form != Form::float32) cuda::split(nullptr, form, x.data(), stride, k, rows, at);
  }
  std::vector<uint32_t> words;
  std::vector<float> scale;
  cuda::Split at;
};

Form form_of(TensorType type) { return type == TensorType::f16 ? Form::halves : Form::bfloats; }

cuda::Matrix on_device(const Matrix& matrix) {
  return {matrix.traits->type, matrix.bytes.data(), matrix.n, matrix.k,
          static_cast<size_t>(matrix.k) / matrix.traits->block * matrix.traits->block_bytes};
}

// Rows x [rows][k] with one matrix; `experts` more without rows beside it make the tiles those of large products.
std::vector<float> product(Form form, const Matrix& matrix, const std::vector<float>& x, int rows, int experts = 0,
                           const float* bias = nullptr, const float* before = nullptr) {
  const SplitRows split(form, x, matrix.k, matrix.k, rows);
  std::vector<float> y(static_cast<size_t>(rows) * (matrix.n + 1), kUntouched);
  if (before) std::copy_n(before, y.size(), y.data());
  const cuda::Product common{on_device(matrix), x.data(),     matrix.k,          {},   bias,
                             y.data(),          matrix.n + 1, before != nullptr, form, split.at};
  if (experts == 0) {
    cuda::multiply(nullptr, common, rows);
  } else {
    std::vector<const uint8_t*> data(experts + 1, matrix.bytes.data());
    std::vector<int32_t> begin(experts + 2, rows);
    begin[0] = 0;
    cuda::multiply_experts(nullptr, {common, data.data(), 0, begin.data(), nullptr, experts + 1}, rows);
  }
  return y;
}

// The largest error of a sum, as a share of the sum of its terms' magnitudes.
double error_of(const Matrix& matrix, const std::vector<float>& x, int rows, const std::vector<float>& y,
                bool rounded = false) {
  const auto w = matrix.decoded();
  const auto seen = [&](float value) -> double { return rounded ? bfloat_to_float(float_to_bfloat(value)) : value; };
  double worst = 0;
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < matrix.n; ++i) {
      double sum = 0, size = 0;
      for (int j = 0; j < matrix.k; ++j) {
        const double term =
            seen(w[static_cast<size_t>(i) * matrix.k + j]) * seen(x[static_cast<size_t>(r) * matrix.k + j]);
        sum += term;
        size += std::fabs(term);
      }
      const double error =
          size == 0 ? std::fabs(y[r * (matrix.n + 1) + i]) : std::fabs(y[r * (matrix.n + 1) + i] - sum) / size;
      worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
    }
  }
  return worst;
}

// One warp: fragments by load_matrices, the first two of which are multiplied with the second two.
void read_matrices(const uint32_t (*rows)[4], uint32_t (*out)[4]) {
  uint32_t found[4];
  cuda::load_matrices(found, rows[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x][i] = found[i];
}

}  // namespace

TEST(matrices_of_shared_memory_are_read_as_ptx_says) {
  alignas(16) uint32_t rows[32][4], out[32][4];
  for (uint32_t i = 0; i < 128; ++i) rows[i / 4][i % 4] = i;
  cuda::emulate(dim3(1), 32, [&] { read_matrices(rows, out); });
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) CHECK_EQ(out[lane][i], rows[i * 8 + lane / 4][lane % 4]);
}

TEST(parts_add_up_to_the_value) {
  const int k = 70, rows = 3, blocks = cuda::split_blocks(k);
  auto x = random_floats(rows * k, 1);
  for (int i = 0; i < rows * k; ++i) x[i] = std::ldexp(x[i], i < k ? i % 60 - 45 : 0);
  for (const Form form : {Form::halves, Form::bfloats, Form::bfloat16}) {
    const SplitRows split(form, x, k, k, rows);
    const int parts = form == Form::halves ? 2 : form == Form::bfloats ? 3 : 1;
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < blocks * 32; ++i) {
        const size_t block = static_cast<size_t>(r) * blocks + i / 32;
        double sum = 0, most = 0;
        for (int part = 0; part < parts; ++part) {
          const auto bits =
              static_cast<uint16_t>(split.at.words[(block * parts + part) * 16 + i % 32 / 2] >> i % 2 * 16);
          sum += form == Form::halves ? half_to_float(bits) : bfloat_to_float(bits);
        }
        if (form == Form::halves) sum *= split.scale[block];
        for (int j = i / 32 * 32; j < std::min(k, i / 32 * 32 + 32); ++j) {
          most = std::max(most, std::fabs(static_cast<double>(x[r * k + j])));
        }
        const double value = i < k ? x[r * k + i] : 0;
        if (form == Form::bfloats) CHECK_EQ(sum, value);
        if (form == Form::halves) CHECK(std::fabs(sum - value) <= std::fabs(value) * 0x1p-22 + most * 0x1p-39);
        if (form == Form::bfloat16) CHECK_EQ(sum, bfloat_to_float(float_to_bfloat(static_cast<float>(value))));
      }
    }
  }
}

TEST(floats_of_16_bits_are_multiplied_as_in_float32) {
  struct Shape {
    int rows, n, k, experts;
  };
  for (const TensorType type : {TensorType::f16, TensorType::bf16}) {
    double worst = 0, worst32 = 0;
    for (const Shape& s :
         {Shape{1, 70, 37, 0}, Shape{3, 65, 1000, 0}, Shape{16, 64, 40, 0}, Shape{17, 131, 64, 0}, Shape{64, 9, 129, 0},
          Shape{65, 131, 168, 0}, Shape{5, 3, 6, 0}, Shape{130, 130, 75, 127}, Shape{140, 129, 96, 127}}) {
      const Matrix matrix(type, s.n, s.k, s.rows);
      const auto x = random_floats(static_cast<size_t>(s.rows) * s.k, 2);
      const auto found = product(form_of(type), matrix, x, s.rows, s.experts);
      worst = std::max(worst, error_of(matrix, x, s.rows, found));
      worst32 = std::max(worst32, error_of(matrix, x, s.rows, product(Form::float32, matrix, x, s.rows)));
      for (int r = 0; r < s.rows; ++r) CHECK_EQ(found[r * (s.n + 1) + s.n], kUntouched);
    }
    printf("    %s: error %.2g, of float32 %.2g\n", type_traits(static_cast<int32_t>(type))->name, worst, worst32);
    CHECK(worst <= worst32);
  }
}

// Rows of 1e-20 to 1e4, in each of them and from one to the next; weights down to the smallest of their types.
TEST(values_of_any_magnitude_keep_the_precision_of_float32) {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> exponent(-20, 4);
  for (const TensorType type : {TensorType::f16, TensorType::bf16}) {
    const int rows = 20, n = 70, k = 232;
    Matrix matrix(type, n, k, 4);
    for (size_t i = 0; i < matrix.bytes.size(); i += 2) {
      const uint32_t wide = type == TensorType::f16 ? random() % 0x7c00 : 0x3300 + random() % 0x1000;
      uint16_t bits = static_cast<uint16_t>(i % 6 == 0 ? random() % 0x400 : wide);  // subnormal, of float16
      bits |= static_cast<uint16_t>(random() % 2 << 15);
      memcpy(&matrix.bytes[i], &bits, 2);
    }
    std::vector<float> x(static_cast<size_t>(rows) * k);
    for (int r = 0; r < rows; ++r) {
      const double own = exponent(random);
      for (int i = 0; i < k; ++i) {
        const double power = r % 2 ? own : exponent(random);
        x[r * k + i] = static_cast<float>((random() % 2 ? 1 : -1) * std::pow(10, power));
        if (r == 4) x[r * k + i] = 0;
        if (r == 6) x[r * k + i] = 1e-32f;
      }
    }
    const double found = error_of(matrix, x, rows, product(form_of(type), matrix, x, rows));
    const double float32 = error_of(matrix, x, rows, product(Form::float32, matrix, x, rows));
    printf("    %s: error %.2g, of float32 %.2g\n", type_traits(static_cast<int32_t>(type))->name, found, float32);
    CHECK(found <= float32);
  }
}

TEST(rows_are_rounded_to_bfloat16_where_the_weights_are) {
  for (const int rows : {5, 70}) {
    const Matrix matrix(TensorType::bf16, 70, 299, 5);
    const auto x = random_floats(static_cast<size_t>(rows) * matrix.k, 6);
    CHECK(error_of(matrix, x, rows, product(Form::bfloat16, matrix, x, rows), true) <= 2e-7);
  }
}

TEST(bias_and_sums_are_added_to) {
  const int rows = 20, n = 33, k = 75;
  const Matrix matrix(TensorType::bf16, n, k, 7);
  const auto x = random_floats(rows * k, 8), bias = random_floats(n, 9), before = random_floats(rows * (n + 1), 10);
  const auto plain = product(Form::bfloats, matrix, x, rows);
  const auto found = product(Form::bfloats, matrix, x, rows, 0, bias.data(), before.data());
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i <= n; ++i) {
      const size_t at = r * (n + 1) + i;
      CHECK_EQ(found[at], i == n ? before[at] : before[at] + (plain[at] + bias[i]));
    }
}

TEST(a_row_of_16_bit_products_has_the_same_bits_in_any_tile) {
  for (const TensorType type : {TensorType::f16, TensorType::bf16}) {
    const int n = 70, k = 299, rows = 70;
    const Matrix matrix(type, n, k, 11);
    const auto x = random_floats(rows * k, 12);
    const auto together = product(form_of(type), matrix, x, rows, 150);
    for (const int count : {1, 20, 65}) {  // rows from 5 on
      const std::vector<float> part(x.begin() + 5 * k, x.begin() + (5 + count) * k);
      CHECK(same_bits(product(form_of(type), matrix, part, count).data(), &together[5 * (n + 1)], count * (n + 1)));
    }
  }
}

TEST(experts_of_16_bit_floats_pick_their_rows) {
  const int n = 40, k = 100, rows = 25;
  const Matrix matrices[3] = {{TensorType::f16, n, k, 1}, {TensorType::f16, n, k, 2}, {TensorType::f16, n, k, 3}};
  const uint8_t* data[3] = {matrices[0].bytes.data(), matrices[1].bytes.data(), matrices[2].bytes.data()};
  const int32_t begin[4] = {0, 20, 20, rows};
  std::vector<int32_t> pick(rows);
  for (int r = 0; r < rows; ++r) pick[r] = (r * 7 + 3) % 11;
  const auto x = random_floats(11 * k, 13);
  const SplitRows split(Form::halves, x, k, k, 11);
  std::vector<float> found(rows * n);
  const cuda::Product common{on_device(matrices[0]), x.data(), k,     {},           nullptr,
                             found.data(),           n,        false, Form::halves, split.at};
  cuda::multiply_experts(nullptr, {common, data, 0, begin, pick.data(), 3}, rows);
  for (const int expert : {0, 2}) {
    const auto expected = product(Form::halves, matrices[expert], x, 11);
    for (int r = begin[expert]; r < begin[expert + 1]; ++r)
      for (int i = 0; i < n; ++i) CHECK_EQ(found[r * n + i], expected[pick[r] * (n + 1) + i]);
  }
}

TEST(what_is_not_finite_stays_so_and_with_its_row) {
  const int rows = 6, n = 20, k = 96;
  for (const Form form : {Form::halves, Form::bfloats, Form::bfloat16}) {
    const Matrix matrix(form == Form::halves ? TensorType::f16 : TensorType::bf16, n, k, 14);
    auto x = random_floats(rows * k, 15);
    const auto clean = product(form, matrix, x, rows);
    uint32_t bits[] = {0x7f800000, 0xff800000, 0x7fffffff, 0x7f800001};
    for (const uint32_t each : bits) {
      memcpy(&x[2 * k + 40], &each, 4);
      const auto found = product(form, matrix, x, rows);
      for (int r = 0; r < rows; ++r) {
        const float *row = &found[r * (n + 1)], *before = &clean[r * (n + 1)];
        if (r != 2) CHECK(same_bits(row, before, n));
        for (int i = 0; i < n && r == 2; ++i) CHECK(!std::isfinite(row[i]));
      }
    }
  }
}
