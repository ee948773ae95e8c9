// The GPU's kernels, run by the emulator of tests/cuda: decoding of every type bit for bit, products in float32 against
// double precision, and tokens and scores against the processor's. Whole models go through them in tests/test_cuda.py.
// Not tested here: what only a GPU has (its own exponentials, timing, memory).
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/philox.h"
#include "cpu/sampling.h"
#include "cuda/decode.h"
#include "cuda/kernels.h"
#include "quant/half.h"
#include "test.h"

using namespace ld;

namespace {

constexpr int kTypes = 42;

// Random blocks whose scales are halves between 2^-9 and 2^-3.
std::vector<uint8_t> random_blocks(const TypeTraits& type, size_t blocks, std::mt19937& random) {
  std::vector<uint8_t> bytes(blocks * type.block_bytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  const auto scale = [&](uint8_t* at) {
    const uint16_t half = static_cast<uint16_t>((6 + random() % 6) << 10 | random() % 1024 | random() % 2 << 15);
    memcpy(at, &half, 2);
  };
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t* block = bytes.data() + b * type.block_bytes;
    switch (type.type) {
      case TensorType::f32: {
        const float value = std::ldexp(static_cast<float>(static_cast<int32_t>(random())), -31);
        memcpy(block, &value, 4);
        break;
      }
      case TensorType::bf16:
        block[1] = 0x3e;
        break;
      case TensorType::mxfp4:
        block[0] = static_cast<uint8_t>(118 + random() % 8);
        break;
      case TensorType::q2_k:
        scale(block + 80), scale(block + 82);
        break;
      case TensorType::q3_k:
        scale(block + 108);
        break;
      case TensorType::q6_k:
        scale(block + 208);
        break;
      case TensorType::q4_1:
      case TensorType::q5_1:
      case TensorType::q4_k:
      case TensorType::q5_k:
        scale(block), scale(block + 2);
        break;
      default:
        scale(block);
    }
  }
  return bytes;
}

std::vector<const TypeTraits*> run_types() {
  std::vector<const TypeTraits*> types;
  for (int i = 0; i < kTypes; ++i) {
    const TypeTraits* type = type_traits(i);
    if (type != nullptr && type->decode != nullptr) types.push_back(type);
  }
  return types;
}

std::vector<float> random_floats(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace

TEST(every_type_is_decoded_bit_for_bit) {
  std::mt19937 random(1);
  CHECK(run_types().size() >= 16);
  for (const TypeTraits* type : run_types()) {
    const int rows = 7, columns = 512;
    const auto bytes = random_blocks(*type, rows * columns / type->block, random);
    const cuda::Matrix table{type->type, bytes.data(), rows, columns, columns / type->block * type->block_bytes};
    const int32_t ids[] = {6, 0, 3, 3};
    std::vector<float> found(4 * columns, 1.0f), expected(columns);
    cuda::embed(nullptr, table, ids, 4, false, 1, found.data());
    for (int r = 0; r < 4; ++r) {
      type->decode(bytes.data() + ids[r] * table.row_bytes, expected.data(), columns);
      CHECK(memcmp(expected.data(), &found[r * columns], columns * sizeof(float)) == 0);
    }
    cuda::embed(nullptr, table, nullptr, 1, true, 1, found.data());
    type->decode(bytes.data(), expected.data(), columns);
    std::vector<float> first(columns);
    type->decode(bytes.data() + 6 * table.row_bytes, first.data(), columns);
    for (int i = 0; i < columns; ++i) CHECK_EQ(found[i], first[i] + expected[i]);
  }
}

TEST(weights_are_rounded_to_bfloat16) {
  std::mt19937 random(5);
  for (const TypeTraits* type : run_types()) {  // columns 2 to 6 of two matrices
    if (type->block == 1) continue;
    const int n = 7, columns = 5, depth = 256;
    const size_t row_bytes = depth / type->block * type->block_bytes, values = static_cast<size_t>(columns) * depth;
    const auto bytes = random_blocks(*type, 2 * n * depth / type->block, random);
    const uint8_t* matrices[] = {bytes.data(), bytes.data() + n * row_bytes};
    std::vector<uint32_t> made(values);  // pairs
    cuda::round(nullptr, {{type->type, nullptr, n, depth, row_bytes}, matrices, 2, columns, 2},
                reinterpret_cast<uint8_t*>(made.data()), values * sizeof(uint16_t));
    std::vector<float> expected(2 * values);
    for (int e = 0; e < 2; ++e) type->decode(matrices[e] + 2 * row_bytes, &expected[e * values], values);
    for (size_t i = 0; i < 2 * values; ++i)
      CHECK_EQ(made[i / 2] >> i % 2 * 16 & 0xffff, static_cast<uint32_t>(float_to_bfloat(expected[i])));
  }
}

TEST(products_are_those_of_double_precision) {
  std::mt19937 random(2);
  for (const TypeTraits* type : run_types()) {
    for (const int rows : {1, 5, 130}) {
      if (rows == 130 && type->type != TensorType::q8_0 && type->type != TensorType::f32) continue;
      const int n = 70, k = type->block == 1 ? 37 : 256;
      const auto bytes = random_blocks(*type, static_cast<size_t>(n) * k / type->block, random);
      const size_t row_bytes = k / type->block * type->block_bytes;
      std::vector<float> w(static_cast<size_t>(n) * k);
      type->decode(bytes.data(), w.data(), w.size());
      const auto x = random_floats(static_cast<size_t>(rows) * (k + 3), random), bias = random_floats(n, random);
      auto y = random_floats(static_cast<size_t>(rows) * (n + 1), random);
      const auto before = y;
      const bool add = rows == 5;
      cuda::multiply(
          nullptr,
          {{type->type, bytes.data(), n, k, row_bytes}, x.data(), k + 3, {}, bias.data(), y.data(), n + 1, add}, rows);
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < n; ++i) {
          double sum = 0, size = 0;
          for (int j = 0; j < k; ++j) {
            const double product = static_cast<double>(x[r * (k + 3) + j]) * w[static_cast<size_t>(i) * k + j];
            sum += product;
            size += std::fabs(product);
          }
          sum += bias[i] + (add ? before[r * (n + 1) + i] : 0);
          CHECK(std::fabs(y[r * (n + 1) + i] - sum) <= 1e-6 * (size + 1));
        }
        CHECK_EQ(y[r * (n + 1) + n], before[r * (n + 1) + n]);
      }
    }
  }
}

TEST(tokens_and_scores_are_the_processors) {
  std::mt19937 random(3);
  int draws = 0, other_tokens = 0;
  for (const int vocab : {3, 64, 257, 2000}) {
    const int words = (vocab + 31) / 32, blocks = logit_blocks(vocab);
    for (int variant = 0; variant < 60; ++variant) {
      const int rows = 3;
      auto logits = random_floats(static_cast<size_t>(rows) * vocab, random);
      for (float& x : logits) x = std::round(x * 16) / 4;  // equal ones occur
      const auto given = logits;
      const float temperature = variant % 4 == 0 ? 0 : 0.3f * static_cast<float>(variant % 4);
      const int top_k = variant % 3 == 1 ? 1 + static_cast<int>(random() % vocab) : 0;
      const float top_p = variant % 5 == 2 ? 0.7f : variant % 5 == 3 ? 0.2f : 1.0f;
      const int32_t forbidden[] = {0, static_cast<int32_t>(random() % vocab)};
      const int32_t repeated[] = {1, 2}, bias_token[] = {0, 1};
      const float bias[] = {0.5f, -2.0f};
      std::vector<uint32_t> allowed(words, ~0u);
      if (variant % 7 == 3) {
        for (uint32_t& word : allowed) word = static_cast<uint32_t>(random()) | 4;
      }
      const bool guided = variant % 6 == 5, lists = variant % 2 == 1;
      const int alternatives = variant % 4;
      Sampling s{temperature,         top_p,     top_k,         77,           variant,
                 variant % 3 == 2,    forbidden, lists ? 2 : 0, alternatives, guided ? 1.5f : 0.0f,
                 lists ? 1.3f : 1.0f, repeated,  lists ? 2 : 0, bias_token,   bias,
                 lists ? 2 : 0};
      if (vocab == 3 && lists) s.n_forbidden = 1;

      std::vector<cuda::ScoreTask> tasks;
      for (int r = 0; r < rows; ++r) {
        tasks.push_back({s.temperature, s.top_p, s.guidance, s.repetition_penalty, s.top_k, s.scores_sampled,
                         alternatives, s.n_forbidden, s.n_repeated, s.n_bias, philox_uniform(s.seed, 10 + r, s.step),
                         forbidden, repeated, bias_token, bias, variant % 7 == 3 ? allowed.data() : nullptr,
                         guided && r == 0 ? 1 : -1, guided && r == 1, r == 2 && variant % 5 == 1 ? vocab - 1 : -1});
      }
      std::vector<float> e(logits.size()), probability(rows), margin(rows), entropy(rows), others(rows * 64);
      std::vector<int32_t> token(rows), other(rows * 64), bad(rows, 7);
      cuda::score(
          nullptr, logits.data(), e.data(), vocab, vocab, tasks.data(), rows,
          {token.data(), probability.data(), margin.data(), entropy.data(), other.data(), others.data(), bad.data()});

      for (int r = 0; r < rows; ++r) {
        if (guided && r == 1) continue;
        Sampling own = s;
        if (r > 0) own.guidance = 0;
        std::vector<float> x(static_cast<size_t>(blocks) * kLogitBlock + 16), scratch(x.size() + 2 * blocks + 64);
        const auto aligned = [](float* p) {
          return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
        };
        float *row = aligned(x.data()), *scratch_e = aligned(scratch.data());
        memcpy(row, &given[static_cast<size_t>(r) * vocab], vocab * sizeof(float));
        if (guided && r == 0) guide(s.guidance, &given[vocab], vocab, row);
        int32_t t, alternative[4] = {};
        float p, m, h, a[4] = {};
        ScoreRow expected{10 + r, &own, &t, &p, &m, &h, alternative, a};
        expected.allowed = variant % 7 == 3 ? allowed.data() : nullptr;
        expected.wanted = tasks[r].wanted;
        const LogitScratch memory{scratch_e, scratch_e + blocks * kLogitBlock, scratch_e + blocks * (kLogitBlock + 1)};
        CHECK(score_row(vector_scalar, row, vocab, expected, memory));
        CHECK_EQ(bad[r], 0);
        ++draws;
        if (token[r] != t) {  // a draw between two tokens whose border both round
          ++other_tokens;
          continue;
        }
        CHECK(std::fabs(probability[r] - p) <= 1e-5f * p + 1e-9f);
        CHECK(std::fabs(margin[r] - m) <= 2e-6f);
        CHECK(std::fabs(entropy[r] - h) <= 1e-5f * (1 + h));
        for (int i = 0; i < alternatives; ++i) {
          CHECK_EQ(other[r * 64 + i], alternative[i]);
          CHECK(std::fabs(others[r * 64 + i] - a[i]) <= 1e-5f * a[i] + 1e-9f);
        }
      }
    }
  }
  CHECK(draws > 600);
  CHECK(other_tokens <= 1);
}

TEST(logits_that_are_not_finite_are_told) {
  std::vector<float> logits = {1, 2, NAN, 1, 2, 3, INFINITY, 0, 0}, e(9), f(3 * 64);
  std::vector<int32_t> i(3 * 64), bad(3);
  std::vector<cuda::ScoreTask> tasks(
      3, cuda::ScoreTask{0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, -1, 0, -1});
  cuda::score(nullptr, logits.data(), e.data(), 3, 3, tasks.data(), 3,
              {i.data(), f.data(), f.data() + 3, f.data() + 6, i.data(), f.data(), bad.data()});
  CHECK_EQ(bad[0], 1);
  CHECK_EQ(bad[1], 0);
  CHECK_EQ(bad[2], 1);
}
