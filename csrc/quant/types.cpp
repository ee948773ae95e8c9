// The table of GGUF tensor types. A new type is one row here and, once it can be run, one pair of functions.
// Not in the table: Q8_1 and Q8_K, which exist only while computing, and numbers that the format has withdrawn.
#include "types.h"

#include "rows.h"

namespace ld {
namespace {

#define LD_ROW(type, name, block, bytes) \
  { TensorType::type, name, block, bytes, quant::decode_##type, quant::finite_##type }
#define LD_LISTED(type, name, block, bytes) \
  { TensorType::type, name, block, bytes, nullptr, nullptr }

constexpr TypeTraits kTypes[] = {
    LD_ROW(f32, "F32", 1, 4),
    LD_ROW(f16, "F16", 1, 2),
    LD_ROW(q4_0, "Q4_0", 32, 18),
    LD_ROW(q4_1, "Q4_1", 32, 20),
    LD_ROW(q5_0, "Q5_0", 32, 22),
    LD_ROW(q5_1, "Q5_1", 32, 24),
    LD_ROW(q8_0, "Q8_0", 32, 34),
    LD_ROW(q2_k, "Q2_K", 256, 84),
    LD_ROW(q3_k, "Q3_K", 256, 110),
    LD_ROW(q4_k, "Q4_K", 256, 144),
    LD_ROW(q5_k, "Q5_K", 256, 176),
    LD_ROW(q6_k, "Q6_K", 256, 210),
    LD_LISTED(iq2_xxs, "IQ2_XXS", 256, 66),
    LD_LISTED(iq2_xs, "IQ2_XS", 256, 74),
    LD_LISTED(iq3_xxs, "IQ3_XXS", 256, 98),
    LD_LISTED(iq1_s, "IQ1_S", 256, 50),
    LD_ROW(iq4_nl, "IQ4_NL", 32, 18),
    LD_LISTED(iq3_s, "IQ3_S", 256, 110),
    LD_LISTED(iq2_s, "IQ2_S", 256, 82),
    LD_ROW(iq4_xs, "IQ4_XS", 256, 136),
    LD_LISTED(i8, "I8", 1, 1),
    LD_LISTED(i16, "I16", 1, 2),
    LD_LISTED(i32, "I32", 1, 4),
    LD_LISTED(i64, "I64", 1, 8),
    LD_LISTED(f64, "F64", 1, 8),
    LD_LISTED(iq1_m, "IQ1_M", 256, 56),
    LD_ROW(bf16, "BF16", 1, 2),
    LD_LISTED(tq1_0, "TQ1_0", 256, 54),
    LD_LISTED(tq2_0, "TQ2_0", 256, 66),
    LD_ROW(mxfp4, "MXFP4", 32, 17),
    LD_LISTED(nvfp4, "NVFP4", 64, 36),
    LD_LISTED(q1_0, "Q1_0", 128, 18),
};

#undef LD_ROW
#undef LD_LISTED

}  // namespace

const TypeTraits* type_traits(int32_t type) {
  for (const TypeTraits& row : kTypes) {
    if (static_cast<int32_t>(row.type) == type) return &row;
  }
  return nullptr;
}

}  // namespace ld
