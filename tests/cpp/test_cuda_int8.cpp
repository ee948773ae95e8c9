// Int8 products of the GPU, run by the emulator: the fragments of each tensor-core instruction against PTX's tables, rows
// as the processor quantises them, and every type at odd shapes bit for bit what the scalar row of kernels computes.
// Not tested here: whether a GPU's instruction does what its emulation does.
#include <cstring>
#include <vector>

#include "cuda/kernels.h"
#include "gemm_tools.h"
#include "test.h"

using namespace ld;

namespace {

// Rows in device memory, which the emulator's is.
struct QuantisedRows {
  QuantisedRows(const std::vector<float>& x, ptrdiff_t stride, int k, int rows)
      : q(static_cast<size_t>(rows) * k + 16), scale(static_cast<size_t>(rows) * (k / 32)), sums(scale.size()) {
    at = {reinterpret_cast<int8_t*>((reinterpret_cast<uintptr_t>(q.data()) + 15) / 16 * 16), scale.data(), sums.data()};
    cuda::quantise(nullptr, x.data(), stride, k, rows, at);
  }
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<uint32_t> sums;
  cuda::Quantised at;
};

// y of the processor's scalar kernels, in exact arithmetic.
std::vector<float> expected_of(const Matrix& matrix, const std::vector<float>& x, int stride, int rows,
                               const float* bias, std::vector<float> y, int y_stride, bool add) {
  const Ops& ops = cpu_ops();
  Device* device = ops.open({"scalar", 1});
  Weight* weight = ops.pack(device, matrix.tensor(), Use::multiply);
  ContextShape shape{};
  const KvShape kv{1, 1};
  shape.threads = shape.slots = shape.slot_length = shape.heads = shape.vocab = shape.layers = 1;
  shape.kv = &kv;
  shape.rows = shape.score_rows = rows;
  shape.max_k = matrix.k;
  Context* context = ops.create(device, shape);
  const LinearOutput output{weight, bias, y.data(), y_stride, add};
  ops.linear(context, {x.data(), stride, matrix.k, nullptr, Norm{}, Activation::none, nullptr}, rows, &output, 1);
  ops.destroy(context);
  ops.release(weight);
  ops.close(device);
  return y;
}

cuda::Matrix on_device(const Matrix& matrix) {
  return {matrix.traits->type, matrix.bytes.data(), matrix.n, matrix.k,
          static_cast<size_t>(matrix.k) / matrix.traits->block * matrix.traits->block_bytes};
}

// One warp's products: a [16][32] times b [32][8], by each instruction.
void products(const int8_t (*a)[32], const int8_t (*b)[8], int32_t (*whole)[8], int32_t (*halves)[8],
              int32_t (*quarters)[8]) {
  const int lane = threadIdx.x, group = lane / 4, within = lane % 4;
  // PTX ISA, "Matrix Fragments for mma.m16n8k32" (.s8): a0-a3 row group, columns within * 4 on; a4-a7 row group + 8;
  // a8-a15 the same, sixteen columns on. b0-b3 rows within * 4 on, column group; b4-b7 sixteen rows on.
  uint32_t fa[4] = {}, fb[2] = {};
  for (int i = 0; i < 16; ++i) {
    const int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8, column = within * 4 + i % 4 + (i < 8 ? 0 : 16);
    fa[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(a[row][column])) << 8 * (i % 4);
  }
  for (int i = 0; i < 8; ++i) {
    const int row = within * 4 + i % 4 + (i < 4 ? 0 : 16);
    fb[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(b[row][group])) << 8 * (i % 4);
  }
  int32_t c[4] = {1, 2, 3, 4}, d[4] = {1, 2, 3, 4}, e[4] = {1, 2, 3, 4};
  cuda::multiply_bytes(c, fa, fb);
  cuda::multiply_bytes(d, fa[0], fa[1], fb[0]);
  cuda::multiply_bytes(d, fa[2], fa[3], fb[1]);
  for (int k = 0; k < 2; ++k) {
    cuda::multiply_bytes_8x8x16(e[0], e[1], fa[2 * k], fb[k]);
    cuda::multiply_bytes_8x8x16(e[2], e[3], fa[2 * k + 1], fb[k]);
  }
  for (int i = 0; i < 4; ++i) {  // c0, c1: row group, columns within * 2 on; c2, c3: row group + 8
    const int row = group + i / 2 * 8, column = within * 2 + i % 2;
    whole[row][column] = c[i] - i - 1;
    halves[row][column] = d[i] - i - 1;
    quarters[row][column] = e[i] - i - 1;
  }
}

}  // namespace

TEST(fragments_of_byte_products_lie_as_ptx_says) {
  std::mt19937 random(1);
  int8_t a[16][32], b[32][8];
  for (auto& row : a)
    for (int8_t& value : row) value = static_cast<int8_t>(random());
  for (auto& row : b)
    for (int8_t& value : row) value = static_cast<int8_t>(random());
  int32_t whole[16][8], halves[16][8], quarters[16][8];
  cuda::emulate(dim3(1), 32, [&] { products(a, b, whole, halves, quarters); });
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[k][column];
      CHECK_EQ(whole[row][column], sum);
      CHECK_EQ(halves[row][column], sum);
      CHECK_EQ(quarters[row][column], sum);
    }
}

TEST(rows_are_quantised_as_on_the_processor) {
  const int k = 1120, rows = 6, stride = k + 5;
  auto x = random_floats(static_cast<size_t>(rows) * stride, 2);
  for (int i = 0; i < k; ++i) x[stride + i] = i % 3 == 0 ? 1e-31f : 0;  // too small for a scale
  x[2 * stride + 40] = NAN;
  x[3 * stride + 700] = -INFINITY;
  for (int i = 0; i < 32; ++i) x[4 * stride + i] = i == 7 ? 127.0f : 0.5f + static_cast<float>(i % 4);  // ties
  const QuantisedRows found(x, stride, k, rows);
  for (int r = 0; r < rows; ++r) {
    std::vector<uint8_t> q(k);
    std::vector<float> scale(k / 32), scaled(k / 32);
    std::vector<int32_t> sum(k / 32);
    gemm_scalar.quantize(&x[static_cast<size_t>(r) * stride], k, {q.data(), scale.data(), scaled.data(), sum.data()});
    CHECK(memcmp(q.data(), found.at.q + r * k, k) == 0);
    CHECK(memcmp(scale.data(), &found.scale[r * (k / 32)], scale.size() * sizeof(float)) == 0);
    for (int b = 0; b < k / 32; ++b) {
      const uint32_t halves = found.sums[r * (k / 32) + b];
      CHECK_EQ(static_cast<int16_t>(halves & 0xffff) + static_cast<int16_t>(halves >> 16), sum[b]);
    }
  }
}

TEST(int8_products_equal_the_scalar_rows_bit_for_bit) {
  for (const TensorType type : kTypes) {
    if (!is_integer(type)) continue;
    const bool super = type_traits(static_cast<int32_t>(type))->block == 256;
    for (const int rows : {1, 16, 37, 130}) {
      const int n = rows == 37 ? 131 : 70, k = super ? rows == 16 ? 512 : 256 : rows == 37 ? 160 : 96;
      const Matrix matrix(type, n, k, rows);
      const int stride = k + 3, y_stride = n + 2;
      const auto x = random_floats(static_cast<size_t>(rows) * stride, 3), bias = random_floats(n, 4);
      const auto before = random_floats(static_cast<size_t>(rows) * y_stride, 5);
      const bool add = rows > 16;
      const float* wanted_bias = rows == 1 ? nullptr : bias.data();
      const auto expected = expected_of(matrix, x, stride, rows, wanted_bias, before, y_stride, add);
      const QuantisedRows quantised(x, stride, k, rows);
      auto found = before;
      cuda::multiply(nullptr,
                     {on_device(matrix), x.data(), stride, quantised.at, wanted_bias, found.data(), y_stride, add},
                     rows, cuda::Cores::int8);
      for (size_t i = 0; i < found.size(); ++i) CHECK_EQ(found[i], expected[i]);
    }
  }
}

TEST(int8_products_of_experts_pick_their_rows) {
  const int n = 40, k = 256, rows = 25;
  const Matrix matrices[3] = {{TensorType::q4_k, n, k, 1}, {TensorType::q4_k, n, k, 2}, {TensorType::q4_k, n, k, 3}};
  const uint8_t* data[3] = {matrices[0].bytes.data(), matrices[1].bytes.data(), matrices[2].bytes.data()};
  const int32_t begin[4] = {0, 20, 20, rows};
  std::vector<int32_t> pick(rows);
  for (int r = 0; r < rows; ++r) pick[r] = (r * 7 + 3) % 11;
  const auto x = random_floats(11 * k, 6);
  const QuantisedRows quantised(x, k, k, 11);
  std::vector<float> found(rows * n), none(11 * n);
  const cuda::Product common{on_device(matrices[0]), x.data(), k, quantised.at, nullptr, found.data(), n, false};
  cuda::multiply_experts(nullptr, {common, data, 0, begin, pick.data(), 3}, rows, cuda::Cores::int8);
  for (const int expert : {0, 2}) {
    const auto expected = expected_of(matrices[expert], x, k, 11, nullptr, none, n, false);
    for (int r = begin[expert]; r < begin[expert + 1]; ++r)
      for (int i = 0; i < n; ++i) CHECK_EQ(found[r * n + i], expected[pick[r] * n + i]);
  }
}
