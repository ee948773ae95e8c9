// Int8 products of the GPU, run by the emulator: the fragments of each tensor-core instruction against PTX's tables, rows
// as the processor quantises them, and every type at odd shapes, in exact and in fast arithmetic, bit for bit what the scalar
// row of kernels computes.
// Not tested here: whether a GPU's instruction does what its emulation does.
#include <cstring>
#include <vector>

#include "cpu/fold.h"
#include "cuda/kernels.h"
#include "gemm_tools.h"
#include "test.h"

using namespace ld;

namespace {

template <class T>
T* aligned(T* at) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(at) + 15) / 16 * 16);
}

// Rows in device memory, which the emulator's is.
struct QuantisedRows {
  QuantisedRows(const std::vector<float>& x, ptrdiff_t stride, int k, int rows, int size)
      : q(static_cast<size_t>(rows) * k + 16),
        scale(static_cast<size_t>(rows) * ((k + size - 1) / size)),
        sums(scale.size()) {
    at = {aligned(q.data()), scale.data(), sums.data(), size};
    cuda::quantise(nullptr, x.data(), stride, k, rows, at);
  }
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<uint32_t> sums;
  cuda::Quantised at;
};

// y of the processor's scalar kernels.
std::vector<float> expected_of(const Matrix& matrix, const std::vector<float>& x, int stride, int rows,
                               const float* bias, std::vector<float> y, int y_stride, bool add, Math math) {
  const Ops& ops = cpu_ops();
  Device* device = ops.open({"scalar", 1});
  Weight* weight = ops.pack(device, matrix.tensor(), Use::multiply);
  ContextShape shape{};
  shape.math = math;
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

// Channels [column, column + columns) of matrices like the first, folded, side by side.
struct Form {
  Form(const std::vector<const Matrix*>& matrices, int column, int columns_) : columns(columns_), k(matrices[0]->k) {
    step = (columns * (k + (k + cuda::kGroup - 1) / cuda::kGroup * sizeof(float)) + 15) / 16 * 16;
    bytes.resize(matrices.size() * step + 16);
    std::vector<const uint8_t*> from;
    for (const Matrix* matrix : matrices) from.push_back(matrix->bytes.data());
    const int count = static_cast<int>(matrices.size());
    cuda::fold(nullptr, {on_device(*matrices[0]), count > 1 ? from.data() : nullptr, column, columns, count},
               aligned(bytes.data()), step);
  }
  const uint8_t* data() const { return aligned(bytes.data()); }
  cuda::Matrix matrix() const { return {TensorType::i8, data(), columns, k, static_cast<size_t>(k)}; }
  int columns, k;
  size_t step;
  std::vector<uint8_t> bytes;
};

void check_product(const Matrix& matrix, int rows, Math math, bool biased, bool add) {
  const int n = matrix.n, k = matrix.k, stride = k + 3, y_stride = n + 2;
  const auto x = random_floats(static_cast<size_t>(rows) * stride, 3), bias = random_floats(n, 4);
  const auto before = random_floats(static_cast<size_t>(rows) * y_stride, 5);
  const float* wanted_bias = biased ? bias.data() : nullptr;
  const auto expected = expected_of(matrix, x, stride, rows, wanted_bias, before, y_stride, add, math);
  const bool fast = math == Math::fast;
  const QuantisedRows quantised(x, stride, k, rows, fast ? cuda::kGroup : 32);
  const Form form({&matrix}, 0, n);
  auto found = before;
  cuda::multiply(nullptr,
                 {fast ? form.matrix() : on_device(matrix), x.data(), stride, quantised.at, wanted_bias, found.data(),
                  y_stride, add, cuda::Form::int8},
                 rows);
  for (size_t i = 0; i < found.size(); ++i) CHECK_EQ(found[i], expected[i]);
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
  for (const int size : {32, cuda::kGroup}) {
    const int k = 1120, rows = 6, stride = k + 5, blocks = (k + size - 1) / size;
    auto x = random_floats(static_cast<size_t>(rows) * stride, 2);
    for (int i = 0; i < k; ++i) x[stride + i] = i % 3 == 0 ? 1e-31f : 0;  // too small for a scale
    x[2 * stride + 40] = NAN;
    x[3 * stride + 700] = -INFINITY;
    for (int i = 0; i < 128; ++i) x[4 * stride + i] = i % 32 == 7 ? 127.0f : 0.5f + static_cast<float>(i % 4);  // ties
    const QuantisedRows found(x, stride, k, rows, size);
    for (int r = 0; r < rows; ++r) {
      std::vector<uint8_t> q(k);
      std::vector<float> scale(blocks), scaled(blocks);
      std::vector<int32_t> sum(blocks);
      (size == 32 ? gemm_scalar.quantize : fold_scalar.quantize)(&x[static_cast<size_t>(r) * stride], k,
                                                                 {q.data(), scale.data(), scaled.data(), sum.data()});
      CHECK(memcmp(q.data(), found.at.q + r * k, k) == 0);
      CHECK(memcmp(scale.data(), &found.scale[r * blocks], scale.size() * sizeof(float)) == 0);
      for (int b = 0; size == 32 && b < blocks; ++b) {
        const uint32_t halves = found.sums[r * blocks + b];
        CHECK_EQ(static_cast<int16_t>(halves & 0xffff) + static_cast<int16_t>(halves >> 16), sum[b]);
      }
    }
  }
}

TEST(parts_of_a_matrix_fold_as_the_whole) {
  const int n = 9, k = 416;
  const Matrix matrix(TensorType::q5_1, n, k, 1);
  const Form whole({&matrix}, 0, n), part({&matrix}, 3, 5);
  CHECK(memcmp(whole.data() + 3 * k, part.data(), 5 * k) == 0);
  for (int group = 0; group < 4; ++group)
    CHECK(memcmp(whole.data() + n * k + (group * n + 3) * 4, part.data() + 5 * k + group * 5 * 4, 5 * 4) == 0);
}

TEST(int8_products_equal_the_scalar_rows_bit_for_bit) {
  for (const TensorType type : kTypes) {
    if (!is_integer(type)) continue;
    const bool super = type_traits(static_cast<int32_t>(type))->block == 256;
    for (const int rows : {1, 16, 37, 130}) {
      const int n = rows == 37 ? 131 : 70;
      // More than all stages of a ring of tiles hold, with an end that is no whole group.
      const int k = rows == 1 ? 96 : rows == 16 ? 736 : rows == 37 ? 352 : 288;
      const Matrix matrix(type, n, super ? (k + 255) / 256 * 256 : k, rows);
      for (const Math math : {Math::exact, Math::fast}) {
        check_product(matrix, rows, math, rows > 1, rows > 16);
      }
    }
  }
}

TEST(scales_at_the_ends_of_their_range_fold_as_on_the_processor) {
  const int n = 3, k = 160;
  Matrix small(TensorType::mxfp4, n, k, 1), large(TensorType::q8_0, n, k, 2), flat(TensorType::q4_1, n, k, 3);
  for (int block = 0; block < n * k / 32; ++block) {
    small.bytes[block * 17] = static_cast<uint8_t>(block % 3);  // scales below float's normal range
    large.set_half(block * 34, block % 2 ? 0x7bff : 0x8001);    // 65,504 beside -2^-24
    flat.set_half(block * 20, 0);
    flat.set_half(block * 20 + 2, block % 2 ? 0 : 0xfbff);
  }
  for (const Matrix* matrix : {&small, &large, &flat}) check_product(*matrix, 2, Math::fast, false, false);
}

TEST(int8_products_of_experts_pick_their_rows) {
  const int n = 41, k = 256, rows = 25;
  const Matrix matrices[3] = {{TensorType::q4_k, n, k, 1}, {TensorType::q4_k, n, k, 2}, {TensorType::q4_k, n, k, 3}};
  const uint8_t* data[3] = {matrices[0].bytes.data(), matrices[1].bytes.data(), matrices[2].bytes.data()};
  const Form form({&matrices[0], &matrices[1], &matrices[2]}, 0, n);
  const int32_t begin[4] = {0, 20, 20, rows};
  std::vector<int32_t> pick(rows);
  for (int r = 0; r < rows; ++r) pick[r] = (r * 7 + 3) % 11;
  const auto x = random_floats(11 * k, 6);
  for (const Math math : {Math::exact, Math::fast}) {
    const bool fast = math == Math::fast;
    const QuantisedRows quantised(x, k, k, 11, fast ? cuda::kGroup : 32);
    std::vector<float> found(rows * n), none(11 * n);
    const cuda::Product common{fast ? form.matrix() : on_device(matrices[0]),
                               x.data(),
                               k,
                               quantised.at,
                               nullptr,
                               found.data(),
                               n,
                               false,
                               cuda::Form::int8};
    cuda::multiply_experts(nullptr, {common, fast ? nullptr : data, form.step, begin, pick.data(), 3}, rows);
    for (const int expert : {0, 2}) {
      const auto expected = expected_of(matrices[expert], x, k, 11, nullptr, none, n, false, math);
      for (int r = begin[expert]; r < begin[expert + 1]; ++r)
        for (int i = 0; i < n; ++i) CHECK_EQ(found[r * n + i], expected[pick[r] * n + i]);
    }
  }
}
