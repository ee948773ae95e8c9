// Decoding of tensor types: blocks worked out by hand, sources at odd addresses that end where their allocation ends
// (for the sanitizers). The comparison with another implementation over random blocks is tests/test_quant.py.
#include <cmath>
#include <memory>
#include <vector>

#include "quant/half.h"
#include "quant/types.h"
#include "test.h"

using namespace ld;

namespace {

// Half precision: 0x3c00 is 1, 0x4000 is 2, 0xb800 is -0.5.
std::vector<float> decode(TensorType type, const std::vector<uint8_t>& blocks) {
  const TypeTraits& row = *type_traits(static_cast<int32_t>(type));
  CHECK_EQ(blocks.size() % row.block_bytes, 0u);
  std::unique_ptr<uint8_t[]> odd(new uint8_t[blocks.size() + 1]);
  std::copy(blocks.begin(), blocks.end(), odd.get() + 1);
  std::vector<float> values(blocks.size() / row.block_bytes * row.block);
  row.decode(odd.get() + 1, values.data(), values.size());
  CHECK(row.finite(odd.get() + 1, values.size()));
  return values;
}

std::vector<uint8_t> block(size_t size, std::initializer_list<std::pair<size_t, uint8_t>> bytes) {
  std::vector<uint8_t> result(size);
  for (const auto& [at, value] : bytes) result[at] = value;
  return result;
}

}  // namespace

TEST(blocks_by_hand) {
  auto q4_0 = decode(TensorType::q4_0, block(36, {{1, 0x40}, {2, 0xf3}, {19, 0xb8}, {35, 0x0a}}));
  CHECK_EQ(q4_0[0], 2.0f * (3 - 8));
  CHECK_EQ(q4_0[16], 2.0f * (15 - 8));
  CHECK_EQ(q4_0[1], 2.0f * -8);
  CHECK_EQ(q4_0[32 + 15], -0.5f * (10 - 8));
  CHECK_EQ(q4_0[32 + 31], -0.5f * -8);
  auto q4_1 = decode(TensorType::q4_1, block(20, {{1, 0x40}, {3, 0x3c}, {4, 0x52}}));
  CHECK_EQ(q4_1[0], 2.0f * 2 + 1);
  CHECK_EQ(q4_1[16], 2.0f * 5 + 1);
  auto q5_0 = decode(TensorType::q5_0, block(22, {{1, 0x40}, {2, 0x01}, {4, 0x01}, {6, 0x21}}));
  CHECK_EQ(q5_0[0], 2.0f * (17 - 16));
  CHECK_EQ(q5_0[16], 2.0f * (18 - 16));
  CHECK_EQ(q5_0[1], 2.0f * -16);
  auto q5_1 = decode(TensorType::q5_1, block(24, {{1, 0x40}, {3, 0x3c}, {7, 0x80}, {23, 0x34}}));
  CHECK_EQ(q5_1[15], 2.0f * 4 + 1);
  CHECK_EQ(q5_1[31], 2.0f * (16 + 3) + 1);
  auto q8_0 = decode(TensorType::q8_0, block(34, {{1, 0xb8}, {2, 0x80}, {33, 0x7f}}));
  CHECK_EQ(q8_0[0], 64.0f);
  CHECK_EQ(q8_0[31], -63.5f);
  // Group 5: scale 1 + 16 * 2, minimum 3 + 16 * 1. Value 3 of it is the high half of byte 2 * 32 + 3.
  auto q4_k =
      decode(TensorType::q4_k,
             block(144, {{1, 0x40}, {3, 0x3c}, {4 + 1, 2 << 6}, {4 + 5, 1 << 6}, {4 + 9, 0x31}, {16 + 67, 0x70}}));
  CHECK_EQ(q4_k[5 * 32 + 3], 2.0f * 33 * 7 - 19);
  CHECK_EQ(q4_k[5 * 32 + 4], -19.0f);
  CHECK_EQ(q4_k[4 * 32 + 3], 0.0f);
  auto q5_k =
      decode(TensorType::q5_k, block(176, {{1, 0x40}, {3, 0x3c}, {4 + 1, 5}, {4 + 5, 6}, {16 + 3, 2}, {48 + 3, 0x70}}));
  CHECK_EQ(q5_k[1 * 32 + 3], 2.0f * 5 * (16 + 7) - 6);
  // Value 128 + 64 + 20: the high half of byte 64 + 20 of the low bits, bits 4-5 of byte 32 + 20, scale 8 + 4 + 1.
  auto q6_k = decode(TensorType::q6_k, block(210, {{84, 0x90}, {128 + 52, 3 << 4}, {192 + 13, 0xfd}, {209, 0x40}}));
  CHECK_EQ(q6_k[212], 2.0f * -3 * (9 + 48 - 32));
  CHECK_EQ(q6_k[213], 2.0f * -3 * -32);
  CHECK_EQ(q6_k[0], 0.0f);
  // Group 9: scale 3, minimum 5. Value 128 + 32 + 4 + 16 = 180 is bits 2-3 of byte 32 + 20.
  auto q2_k = decode(TensorType::q2_k, block(84, {{11, 0x53}, {16 + 52, 2 << 2}, {81, 0x40}, {83, 0x3c}}));
  CHECK_EQ(q2_k[180], 2.0f * 3 * 2 - 5);
  CHECK_EQ(q2_k[181], -5.0f);
  CHECK_EQ(q2_k[0], 0.0f);
  // Group 13: scale 7 + 16 * 3, its bits in the high half of byte 5 and bits 6-7 of byte 9. Value 220 = 128 + 64 + 28 is
  // bits 4-5 of byte 32 + 28 and bit 6 of byte 28 of the third bits.
  auto q3_k = decode(TensorType::q3_k,
                     block(110, {{28, 1 << 6}, {32 + 60, 3 << 4}, {96 + 5, 0x70}, {96 + 9, 3 << 6}, {109, 0x40}}));
  CHECK_EQ(q3_k[220], 2.0f * (55 - 32) * 3);
  CHECK_EQ(q3_k[221], 2.0f * (55 - 32) * -4);
  CHECK_EQ(q3_k[0], 2.0f * -32 * -4);
  auto iq4_nl = decode(TensorType::iq4_nl, block(18, {{1, 0x40}, {2, 0xf1}}));
  CHECK_EQ(iq4_nl[0], 2.0f * -104);
  CHECK_EQ(iq4_nl[16], 2.0f * 113);
  CHECK_EQ(iq4_nl[1], 2.0f * -127);
  // Group 3: scale 9 + 16 * 2.
  auto iq4_xs = decode(TensorType::iq4_xs, block(136, {{1, 0x40}, {2, 2 << 6}, {4 + 1, 0x90}, {8 + 48, 0x80}}));
  CHECK_EQ(iq4_xs[3 * 32], 2.0f * (41 - 32) * -127);
  CHECK_EQ(iq4_xs[3 * 32 + 16], 2.0f * (41 - 32) * 1);
  CHECK_EQ(iq4_xs[0], 2.0f * -32 * -127);
  auto mxfp4 = decode(TensorType::mxfp4, block(17, {{0, 128}, {1, 0xf5}}));
  CHECK_EQ(mxfp4[0], 6.0f);
  CHECK_EQ(mxfp4[16], -12.0f);
  CHECK_EQ(decode(TensorType::mxfp4, block(17, {{0, 0}, {1, 1}}))[0], 0x1p-128f);
  CHECK_EQ(decode(TensorType::f32, {0, 0, 0x80, 0xbf})[0], -1.0f);
  CHECK_EQ(decode(TensorType::f16, {0, 0xb8})[0], -0.5f);
  CHECK_EQ(decode(TensorType::bf16, {0x80, 0xbf})[0], -1.0f);
}

TEST(halves) {
  CHECK_EQ(half_to_float(0x0001), 0x1p-24f);
  CHECK_EQ(half_to_float(0x83ff), -1023 * 0x1p-24f);
  CHECK_EQ(half_to_float(0x0400), 0x1p-14f);
  CHECK_EQ(half_to_float(0x7bff), 65504.0f);
  CHECK(std::isinf(half_to_float(0xfc00)) && half_to_float(0xfc00) < 0);
  CHECK(std::isnan(half_to_float(0x7c01)));
  CHECK(std::signbit(half_to_float(0x8000)));
  for (uint32_t half = 0; half < 65536; ++half) {
    const float value = half_to_float(static_cast<uint16_t>(half));
    if (!std::isnan(value)) CHECK_EQ(float_to_half(value), half);
  }
  CHECK_EQ(float_to_half(65519.996f), 0x7bff);
  CHECK_EQ(float_to_half(65520.0f), 0x7c00);
  CHECK_EQ(float_to_half(0x1p-25f), 0);  // a tie, to even
  CHECK_EQ(float_to_half(0x1.000002p-25f), 1);
}

TEST(damaged_scales) {
  for (TensorType type :
       {TensorType::f16, TensorType::q4_0, TensorType::q4_1, TensorType::q5_0, TensorType::q5_1, TensorType::q8_0,
        TensorType::q4_k, TensorType::q5_k, TensorType::iq4_nl, TensorType::iq4_xs}) {
    const TypeTraits& row = *type_traits(static_cast<int32_t>(type));
    std::vector<uint8_t> blocks(3 * row.block_bytes);
    CHECK(row.finite(blocks.data(), 3 * row.block));
    blocks[2 * row.block_bytes + 1] = 0xfc;
    CHECK(!row.finite(blocks.data(), 3 * row.block));
    CHECK(row.finite(blocks.data(), 2 * row.block));
  }
  CHECK(type_traits(4) == nullptr && type_traits(-1) == nullptr && type_traits(1 << 30) == nullptr);
}
