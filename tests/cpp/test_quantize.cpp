// The quantiser: the same bytes from every table of encoders, with any threads and any division into calls; values that
// a type can hold come back exactly; extremes, weights, refusals. How good it is: tests/test_quantize.py.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "quant/encode.h"
#include "quant/quantize.h"
#include "test.h"

using namespace ld;

namespace {

const TensorType kBlockTypes[] = {TensorType::q8_0, TensorType::q4_0, TensorType::q4_1,   TensorType::q5_0,
                                  TensorType::q5_1, TensorType::q2_k, TensorType::q3_k,   TensorType::q4_k,
                                  TensorType::q5_k, TensorType::q6_k, TensorType::iq4_nl, TensorType::iq4_xs};

const TypeTraits& traits(TensorType type) { return *type_traits(static_cast<int32_t>(type)); }

// Random values: groups of 16 of all magnitudes, some constant, some zero, some with an outlier.
std::vector<float> random_values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (size_t first = 0; first < count; first += 16) {
    const float scale = std::exp2(static_cast<float>(static_cast<int>(random() % 50) - 45));
    const uint32_t kind = random() % 8;
    for (size_t i = first; i < first + 16; ++i) {
      values[i] = kind == 0 ? 0.0f : kind == 1 ? scale : scale * normal(random);
    }
    if (kind == 2) values[first + random() % 16] *= 50;
  }
  return values;
}

std::vector<uint8_t> quantize(TensorType type, const std::vector<float>& values, size_t columns,
                              const float* importance = nullptr, int threads = 1) {
  const TypeTraits& row = traits(type);
  Pool pool(threads);
  std::vector<uint8_t> out(values.size() / row.block * row.block_bytes);
  quantize_rows(row, values.data(), values.size() / columns, columns, importance, pool, out.data());
  return out;
}

std::vector<float> decode(TensorType type, const std::vector<uint8_t>& blocks) {
  const TypeTraits& row = traits(type);
  std::vector<float> values(blocks.size() / row.block_bytes * row.block);
  row.decode(blocks.data(), values.data(), values.size());
  return values;
}

double error(const std::vector<float>& a, const std::vector<float>& b, size_t column, size_t columns) {
  double sum = 0;
  for (size_t i = column; i < a.size(); i += columns) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

}  // namespace

TEST(every_table_writes_the_same_bytes) {
  std::vector<const quant::EncoderTable*> tables;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&quant::encoders_avx2);
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512dq")) {
    tables.push_back(&quant::encoders_avx512_vnni);
  }
#endif
  if (tables.empty()) SKIP("one table of encoders on this processor");
  const size_t columns = 1280;
  const std::vector<float> values = random_values(7 * columns, 1);
  std::vector<float> weights = random_values(columns, 2);
  for (float& weight : weights) weight = std::fabs(weight) + 1e-6f;
  for (const quant::EncoderTable* table : tables) {
    CHECK_EQ(table->count, quant::encoders_base.count);
    for (int i = 0; i < table->count; ++i) {
      const TypeTraits& row = traits(table->rows[i].type);
      const size_t bytes = values.size() / row.block * row.block_bytes;
      std::vector<uint8_t> expected(bytes), found(bytes);
      const quant::Source source = {values.data(), values.size(), weights.data(), columns};
      quant::encoders_base.rows[i].encode(source, expected.data());
      table->rows[i].encode(source, found.data());
      if (found != expected) test::fail(__FILE__, __LINE__, row.name);
    }
  }
}

TEST(threads_and_calls_change_nothing) {
  const size_t columns = 768, rows = 70;
  const std::vector<float> values = random_values(rows * columns, 3);
  for (TensorType type : kBlockTypes) {
    const std::vector<uint8_t> expected = quantize(type, values, columns);
    CHECK(quantize(type, values, columns, nullptr, 3) == expected);
    std::vector<uint8_t> parts;
    for (size_t row = 0; row < rows; row += 7) {
      const std::vector<float> part(values.begin() + row * columns, values.begin() + (row + 7) * columns);
      const std::vector<uint8_t> blocks = quantize(type, part, columns);
      parts.insert(parts.end(), blocks.begin(), blocks.end());
    }
    CHECK(parts == expected);
  }
}

// Decoded values of random blocks of modest scales, quantised again: the error is at most that of rounding a scale.
TEST(values_of_the_type_come_back) {
  std::mt19937 random(4);
  for (TensorType type : kBlockTypes) {
    const std::vector<float> values = decode(type, quantize(type, random_values(64 * 256, random()), 256));
    const std::vector<float> again = decode(type, quantize(type, values, 256));
    double difference = 0, size = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::fabs(again[i] - values[i]);
      size += std::fabs(values[i]);
    }
    CHECK(difference <= 0.02 * size);
  }
  // Worked out by hand: -8 to 7 times 0.5, and 0 to 15 times 0.25 from -1 on.
  std::vector<float> even(32), offset(32);
  for (int i = 0; i < 32; ++i) {
    even[i] = 0.5f * static_cast<float>(i % 16 - 8);
    offset[i] = 0.25f * static_cast<float>(i % 16) - 1;
  }
  CHECK(decode(TensorType::q4_0, quantize(TensorType::q4_0, even, 32)) == even);
  CHECK(decode(TensorType::q4_1, quantize(TensorType::q4_1, offset, 32)) == offset);
  CHECK_EQ(quantize(TensorType::q4_0, even, 32)[1], 0x38);    // d = 0.5
  CHECK_EQ(quantize(TensorType::q4_1, offset, 32)[3], 0xbc);  // m = -1
}

TEST(extremes) {
  for (TensorType type : kBlockTypes) {
    const TypeTraits& row = traits(type);
    for (float value : {0.0f, -0.0f, 1e-45f, -1e-30f, 1e-9f, 6e-8f, 65504.0f, -65504.0f}) {
      std::vector<float> values(512, value);
      values[300] = -value / 3;
      const std::vector<uint8_t> blocks = quantize(type, values, 512);
      CHECK(row.finite(blocks.data(), 512));
      const std::vector<float> back = decode(type, blocks);
      for (size_t i = 0; i < 512; ++i) CHECK(std::fabs(back[i] - values[i]) <= 0.5f * std::fabs(value) + 1e-6f);
    }
    const std::vector<float> values = random_values(64 * 256, 5);
    CHECK(row.finite(quantize(type, values, 256).data(), values.size()));
  }
}

TEST(weighted_columns_are_closer) {
  const size_t columns = 256;
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  std::vector<float> values(64 * columns), weights(columns, 1.0f);
  for (float& value : values) value = normal(random);
  weights[100] = 1000;
  for (TensorType type : kBlockTypes) {
    const auto plain = decode(type, quantize(type, values, columns));
    const auto weighted = decode(type, quantize(type, values, columns, weights.data()));
    CHECK(error(weighted, values, 100, columns) < 0.7 * error(plain, values, 100, columns));
  }
  // All weights zero, or all the same: as without.
  for (float weight : {0.0f, 3.0f}) {
    weights.assign(columns, weight);
    const auto plain = decode(TensorType::q4_k, quantize(TensorType::q4_k, values, columns));
    const auto weighted = decode(TensorType::q4_k, quantize(TensorType::q4_k, values, columns, weights.data()));
    double total = 0, other = 0;
    for (size_t i = 0; i < columns; ++i) {
      total += error(plain, values, i, columns);
      other += error(weighted, values, i, columns);
    }
    CHECK(std::fabs(total - other) < 0.001 * total);
  }
}

TEST(floats) {
  const std::vector<float> values = {0.0f, -1.5f, 65504.0f, 1e-7f, 0.1f, -0.3f};
  CHECK(decode(TensorType::f32, quantize(TensorType::f32, values, 3)) == values);
  CHECK_EQ(decode(TensorType::f16, quantize(TensorType::f16, values, 3))[2], 65504.0f);
  CHECK_EQ(decode(TensorType::bf16, quantize(TensorType::bf16, values, 3))[1], -1.5f);
}

TEST(refusals) {
  std::vector<float> values(2 * 256, 1.0f), weights(256, 1.0f);
  CHECK_THROWS(quantize(TensorType::iq2_xxs, values, 256), "IQ2_XXS cannot be written");
  CHECK_THROWS(quantize(TensorType::mxfp4, values, 256), "MXFP4 cannot be written");
  CHECK_THROWS(quantize(TensorType::q4_k, values, 128), "rows of 128 values do not divide into the blocks of 256");
  values[256 + 7] = 70000;
  CHECK_THROWS(quantize(TensorType::q4_k, values, 256), "row 1, column 7 holds 70000, too large for type Q4_K");
  CHECK_THROWS(quantize(TensorType::f16, values, 256), "too large for type F16");
  CHECK_EQ(decode(TensorType::bf16, quantize(TensorType::bf16, values, 256))[256], 1.0f);
  values[3] = NAN;
  CHECK_THROWS(quantize(TensorType::q8_0, values, 256), "row 0, column 3 holds nan, which is not finite");
  values[3] = -INFINITY;
  CHECK_THROWS(quantize(TensorType::f32, values, 256), "row 0, column 3 holds -inf, which is not finite");
  values.assign(512, 1.0f);
  weights[9] = -1;
  CHECK_THROWS(quantize(TensorType::q4_k, values, 256, weights.data()), "the importance of column 9 is -1");
  weights[9] = NAN;
  CHECK_THROWS(quantize(TensorType::q4_k, values, 256, weights.data()), "the importance of column 9 is nan");
}
