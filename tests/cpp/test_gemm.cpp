// Packed weights and the linear layer, for every kernel row that this processor runs: against a double-precision product
// of the decoded weights and the quantised input, against the scalar row, and bit for bit against itself with other
// rows, threads and panels. The input's own quantisation error is tested apart. Not here: decoding of blocks.
#include "gemm_tools.h"

using namespace ld;

namespace {

// The input as an integer kind sees it, in plain arithmetic.
std::vector<float> quantised(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  for (size_t b = 0; b < x.size(); b += kBlock) {
    float max = 0;
    for (int i = 0; i < kBlock; ++i) max = std::max(max, std::fabs(x[b + i]));
    const float inverse = 127.0f / max, scale = max / 127.0f;
    for (int i = 0; i < kBlock && max > 0; ++i) out[b + i] = std::nearbyintf(x[b + i] * inverse) * scale;
  }
  return out;
}

}  // namespace

TEST(every_row_and_type_equals_the_double_product) {
  struct Shape {
    int m, n, k;
  };
  // Ragged rows and channels, one and several chunks of k.
  const Shape shapes[] = {{1, 1, 256},   {2, 3, 512},   {3, 2, 768},   {5, 7, 256},     {7, 8, 1536},   {8, 5, 256},
                          {15, 17, 512}, {16, 15, 768}, {17, 16, 256}, {31, 33, 256},   {32, 31, 512},  {33, 32, 768},
                          {63, 65, 256}, {64, 63, 256}, {65, 64, 256}, {127, 129, 256}, {129, 127, 256}};
  const auto rows = supported_rows();
  for (TensorType type : kTypes) {
    for (const Shape& s : shapes) {
      const Matrix matrix(type, s.n, s.k, 7 * s.m + s.n);
      const std::vector<float> w = matrix.decoded(), x = random_floats(static_cast<size_t>(s.m) * s.k, s.k + s.m);
      const std::vector<float> seen = is_integer(type) ? quantised(x) : x;
      for (const KernelRow* row : rows) {
        const std::string what = std::string(row->name) + " " + matrix.traits->name;
        check_product(what.c_str(), matrix, w, seen, s.m, multiply(*row, *pack(*row, matrix), x, s.m));
      }
    }
  }
}

TEST(blocks_of_32_may_end_anywhere) {
  for (TensorType type : {TensorType::q4_0, TensorType::q4_1, TensorType::q5_0, TensorType::q5_1, TensorType::q8_0,
                          TensorType::iq4_nl, TensorType::mxfp4}) {
    for (int k : {32, 64, 96, 480, 544, 576, 1056}) {
      const Matrix matrix(type, 33, k, k);
      const std::vector<float> w = matrix.decoded(), x = random_floats(9 * static_cast<size_t>(k), k + 1);
      for (const KernelRow* row : supported_rows()) {
        check_product(row->name, matrix, w, quantised(x), 9, multiply(*row, *pack(*row, matrix), x, 9));
      }
    }
  }
}

TEST(float_kinds_take_any_width) {
  for (TensorType type : {TensorType::f32, TensorType::f16, TensorType::bf16}) {
    for (int k : {1, 2, 3, 7, 31, 33, 100, 255, 257, 513, 600}) {
      const Matrix matrix(type, 35, k, k);
      const std::vector<float> w = matrix.decoded(), x = random_floats(13 * static_cast<size_t>(k), k + 1);
      for (const KernelRow* row : supported_rows()) {
        check_product(row->name, matrix, w, x, 13, multiply(*row, *pack(*row, matrix), x, 13));
      }
    }
  }
}

// Extreme integers: -128 and 127 against inputs of +-127 must not saturate anywhere. With scales of 1 the result is an
// integer below 2^24 and every row must give it exactly.
TEST(integer_dots_are_exact_at_the_extremes) {
  const int n = 40, k = 256, m = 8;
  for (TensorType type : {TensorType::q8_0, TensorType::q4_0}) {
    Matrix matrix(type, n, k, 1);
    std::mt19937 random(5);
    const size_t block = matrix.traits->block_bytes;
    for (size_t b = 0; b < matrix.bytes.size(); b += block) {
      matrix.set_half(b, 0x3c00);
      const bool low = b / block % 3 == 0, high = b / block % 3 == 1;
      for (size_t i = 2; i < block; ++i) {
        const uint8_t extreme[2] = {0x80, 0x7f}, nibble[2] = {0x00, 0xff};
        const uint8_t* from = type == TensorType::q8_0 ? extreme : nibble;
        matrix.bytes[b + i] = from[low ? 0 : high ? 1 : random() & 1];
      }
    }
    std::vector<float> x(static_cast<size_t>(m) * k);
    for (size_t i = 0; i < x.size(); ++i) x[i] = i / k % 2 == 0 ? 127.0f : random() & 1 ? 127.0f : -127.0f;
    const std::vector<float> w = matrix.decoded();
    for (const KernelRow* row : supported_rows()) {
      const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, m);
      for (int r = 0; r < m; ++r) {
        for (int c = 0; c < n; ++c) {
          double sum = 0;
          for (int i = 0; i < k; ++i) sum += static_cast<double>(w[c * k + i]) * x[r * k + i];
          CHECK_EQ(static_cast<double>(y[r * n + c]), sum);
        }
      }
    }
  }
}

TEST(quantised_rows_agree_between_kernel_rows) {
  const int k = 1024;
  std::vector<float> x = random_floats(k, 3);
  for (int i = 0; i < k; ++i) x[i] *= std::exp2(static_cast<float>(i / kBlock) - 16);
  std::fill(x.begin() + 32, x.begin() + 64, 0.0f);
  std::fill(x.begin() + 64, x.begin() + 96, 1e-38f);
  x[130] = std::numeric_limits<float>::infinity();
  x[170] = std::numeric_limits<float>::quiet_NaN();
  const auto rows = supported_rows();
  std::vector<std::vector<float>> scale(rows.size()), scaled_sum(rows.size());
  std::vector<std::vector<int32_t>> sum(rows.size());
  int which = 0;
  for (const KernelRow* row : rows) {
    std::vector<uint8_t> q(k);
    scale[which].resize(k / kBlock);
    scaled_sum[which].resize(k / kBlock);
    sum[which].resize(k / kBlock);
    row->gemm->quantize(x.data(), k, {q.data(), scale[which].data(), scaled_sum[which].data(), sum[which].data()});
    CHECK_EQ(scale[which][1], 0.0f);
    CHECK_EQ(scale[which][2], 0.0f);
    CHECK(std::isnan(scale[which][4]));
    CHECK(std::isnan(scale[which][5]));
    CHECK(same_bits(scale[0].data(), scale[which].data(), k / kBlock));
    CHECK(same_bits(scaled_sum[0].data(), scaled_sum[which].data(), k / kBlock));
    CHECK(sum[0] == sum[which]);
    const int shift = q[kBlock];  // how a zero is stored: rows that multiply unsigned input bytes add 128
    CHECK_EQ(shift, static_cast<int>(row->gemm->flip));
    for (int b = 0; b < k / kBlock; ++b) {
      int32_t total = 0;
      for (int i = 0; i < kBlock; ++i) {
        const int value = shift ? q[b * kBlock + i] - shift : static_cast<int8_t>(q[b * kBlock + i]);
        CHECK(value >= -127 && value <= 127);
        if (scale[which][b] > 0)
          CHECK(std::fabs(value * scale[which][b] - x[b * kBlock + i]) <= scale[which][b] * 0.501f);
        total += value;
      }
      CHECK_EQ(total, sum[which][b]);
    }
    ++which;
  }
}

TEST(a_value_that_is_not_finite_reaches_the_outputs) {
  const int k = 256;
  for (TensorType type : kTypes) {
    const Matrix matrix(type, 5, k, 11);
    for (const KernelRow* row : supported_rows()) {
      std::vector<float> x = random_floats(3 * k, 4);
      x[k + 77] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, 3);
      for (int c = 0; c < 5; ++c) {
        CHECK(std::isfinite(y[c]) && !std::isfinite(y[5 + c]) && std::isfinite(y[10 + c]));
      }
    }
  }
}

TEST(results_do_not_depend_on_rows_or_threads) {
  const int n = 150, k = 768, most = 700;  // more than one slab
  const std::vector<float> x = random_floats(static_cast<size_t>(most) * k, 21);
  for (TensorType type : kTypes) {
    const Matrix matrix(type, n, k, 22);
    for (const KernelRow* row : supported_rows()) {
      const bool slow = strcmp(row->name, "scalar") == 0;
      const int rows = slow ? 40 : most;
      const auto packed = pack(*row, matrix, 2);
      const std::vector<float> all = multiply(*row, *packed, x, rows, 1);
      for (int threads : {2, 3, 5}) {
        CHECK(same_bits(all.data(), multiply(*row, *packed, x, rows, threads).data(), all.size()));
      }
      for (int m : {1, 2, 3, 7, 8, 12, 13, 29, 40, 300}) {
        if (m > rows) continue;
        for (int first : {0, 1, rows - m}) {
          if (first + m > rows) continue;
          const std::vector<float> some(x.begin() + static_cast<size_t>(first) * k,
                                        x.begin() + static_cast<size_t>(first + m) * k);
          const std::vector<float> y = multiply(*row, *packed, some, m, m % 2 + 1);
          CHECK(same_bits(all.data() + static_cast<size_t>(first) * n, y.data(), y.size()));
        }
      }
    }
  }
}

TEST(bias_residual_stride_and_several_outputs) {
  const int k = 256, m = 37;
  const std::vector<float> x = random_floats(static_cast<size_t>(m) * k, 31);
  const Matrix a(TensorType::q4_k, 70, k, 32), b(TensorType::f16, 33, k, 33), c(TensorType::q8_0, 5, k, 34);
  const std::vector<float> bias = random_floats(70, 35);
  for (const KernelRow* row : supported_rows()) {
    const auto pa = pack(*row, a), pb = pack(*row, b), pc = pack(*row, c);
    const std::vector<float> ya = multiply(*row, *pa, x, m), yb = multiply(*row, *pb, x, m),
                             yc = multiply(*row, *pc, x, m);
    // a and b share one buffer of rows side by side, as q, k and v do; c is added to what is there.
    const int stride = 110;
    std::vector<float> y(static_cast<size_t>(m) * stride, 5.0f), z = random_floats(m * 5, 36), z0 = z, z1 = z;
    Pool pool(3);
    Scratch scratch(m, k, 3);
    const PackedOutput outputs[] = {{pa.get(), bias.data(), y.data(), stride, false},
                                    {pb.get(), nullptr, y.data() + 70, stride, false},
                                    {pc.get(), nullptr, z.data(), 5, true},
                                    {pc.get(), bias.data(), z1.data(), 5, true}};
    linear(*row, pool, scratch.scratch.get(), plain(x, k), m, outputs, 4);
    CHECK(scratch.intact());
    for (int r = 0; r < m; ++r) {
      for (int i = 0; i < 70; ++i) CHECK_EQ(y[r * stride + i], ya[r * 70 + i] + bias[i]);
      for (int i = 0; i < 33; ++i) CHECK_EQ(y[r * stride + 70 + i], yb[r * 33 + i]);
      for (int i = 103; i < stride; ++i) CHECK_EQ(y[r * stride + i], 5.0f);
      for (int i = 0; i < 5; ++i) CHECK_EQ(z[r * 5 + i], yc[r * 5 + i] + z0[r * 5 + i]);
      for (int i = 0; i < 5; ++i) CHECK_EQ(z1[r * 5 + i], yc[r * 5 + i] + bias[i] + z0[r * 5 + i]);
    }
  }
}

TEST(panels_give_the_same_as_the_layer) {
  const int n = 333, k = 512, m = 20;
  const std::vector<float> x = random_floats(static_cast<size_t>(m) * k, 41);
  for (TensorType type : {TensorType::q6_k, TensorType::q2_k, TensorType::f32}) {
    const Matrix matrix(type, n, k, 42);
    for (const KernelRow* row : supported_rows()) {
      const auto packed = pack(*row, matrix);
      const std::vector<float> y = multiply(*row, *packed, x, m);
      const int panel = row->gemm->panel;
      Pool pool(1);
      Scratch scratch(m, k, 1);
      InputForms forms;
      forms.add(packed->traits());
      prepare(*row, pool, scratch.scratch.get(), plain(x, k), 0, m, forms);
      CHECK_EQ(scratch.scratch->count(), m);
      for (int p = 0; p < packed->panels(); p += 3) {
        const int end = std::min(p + 3, packed->panels()), stride = (end - p) * panel;
        alignas(64) float out[20 * 3 * kMaxPanel];
        multiply_panels(*packed, *scratch.scratch, 0, p, end, 4, m, out, stride);
        for (int r = 4; r < m; ++r) {
          for (int c = 0; c < stride; ++c) {
            const int channel = p * panel + c;
            CHECK_EQ(out[(r - 4) * stride + c], channel < n ? y[r * n + channel] : 0.0f);
          }
        }
      }
    }
  }
}

TEST(a_scale_that_is_not_finite_is_refused) {
  for (TensorType type : kTypes) {
    for (int offset : half_offsets(type)) {
      Matrix matrix(type, 40, 512, 51);
      const size_t block = 512 / matrix.traits->block * 35 + 1;
      matrix.set_half(block * matrix.traits->block_bytes + offset, 0x7c00);
      matrix.set_half((block + 3) * matrix.traits->block_bytes + offset, 0x7e00);
      const std::string expected = "blk.0.test.weight: block " + std::to_string(block) + " has a scale";
      for (const KernelRow* row : supported_rows()) CHECK_THROWS(pack(*row, matrix, 2), expected.c_str());
    }
  }
}

TEST(a_float_that_is_not_finite_is_refused) {
  Matrix matrix(TensorType::bf16, 40, 100, 52);
  matrix.set_half(2 * 3333, 0x7f80);
  for (const KernelRow* row : supported_rows()) CHECK_THROWS(pack(*row, matrix, 2), "block 3333 has a value");
}

// Every exponent that is allowed, also those whose scales float16 does not hold: a channel each.
TEST(mxfp4_keeps_all_its_exponents) {
  const int n = 230, k = 32;
  Matrix matrix(TensorType::mxfp4, n, k, 53);
  for (int c = 0; c < n; ++c) matrix.bytes[c * matrix.traits->block_bytes] = static_cast<uint8_t>(c);
  const std::vector<float> w = matrix.decoded();
  std::vector<float> x(2 * static_cast<size_t>(k) * k);  // one row per value and magnitude
  for (int i = 0; i < k; ++i) {
    x[i * k + i] = 0x1p100f;
    x[(k + i) * k + i] = 1.0f;
  }
  for (const KernelRow* row : supported_rows()) {
    const std::vector<float> y = multiply(*row, *pack(*row, matrix), x, 2 * k);
    for (int c = 0; c < n; ++c) {
      for (int i = 0; i < k; ++i) {
        const float expected = w[c * k + i] * (c < 128 ? 0x1p100f : 1.0f);
        CHECK(std::fabs(y[(c < 128 ? i : k + i) * n + c] - expected) <= 1e-6f * std::fabs(expected));
      }
    }
  }
  matrix.bytes[7 * matrix.traits->block_bytes] = 255;
  for (const KernelRow* row : supported_rows()) CHECK_THROWS(pack(*row, matrix), "block 7 has a scale");
}

TEST(a_type_without_a_kind_is_refused) {
  const TypeTraits traits = {TensorType::iq2_xs, "IQ2_XS", 256, 74, nullptr, nullptr};
  Matrix matrix(TensorType::f32, 2, 256, 1);
  matrix.traits = &traits;
  for (const KernelRow* row : supported_rows()) CHECK_THROWS(pack(*row, matrix), "IQ2_XS cannot be run");
}

TEST(packed_memory_is_near_the_file) {
  struct Row {
    TensorType type;
    double bits;  // per weight, at 32 channels per panel
  };
  const Row expected[] = {{TensorType::q4_0, 4.5},      {TensorType::q4_1, 5.0},    {TensorType::q8_0, 8.5},
                          {TensorType::q4_k, 4.625},    {TensorType::q6_k, 6.5625}, {TensorType::q5_0, 5.5},
                          {TensorType::q5_1, 6.0},      {TensorType::q5_k, 5.625},  {TensorType::f16, 16.0},
                          {TensorType::f32, 32.0},      {TensorType::q3_k, 3.5625}, {TensorType::iq4_nl, 4.5},
                          {TensorType::iq4_xs, 4.3125}, {TensorType::mxfp4, 4.5},   {TensorType::q2_k, 2.625}};
  for (const KernelRow* row : supported_rows()) {
    for (const Row& each : expected) {
      const Matrix matrix(each.type, 64, 1024, 1);
      const double wanted = 64 * 1024 * each.bits / 8, bytes = static_cast<double>(pack(*row, matrix)->bytes());
      CHECK(bytes >= wanted && bytes <= wanted * 1.03);  // narrow panels end on whole cache lines
    }
  }
}
