// GGUF tensor types: one row per type in one table. Blocks are decoded here exactly as the format defines them; how a
// kernel row repacks them is its own business (cpu/). Not here: encoding (the quantiser), tensors as a whole.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ld {

// clang-format off
enum class TensorType : int32_t {
  f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13,
  q6_k = 14, iq2_xxs = 16, iq2_xs = 17, iq3_xxs = 18, iq1_s = 19, iq4_nl = 20, iq3_s = 21, iq2_s = 22, iq4_xs = 23,
  i8 = 24, i16 = 25, i32 = 26, i64 = 27, f64 = 28, iq1_m = 29, bf16 = 30, tq1_0 = 34, tq2_0 = 35, mxfp4 = 39,
  nvfp4 = 40, q1_0 = 41,
};
// clang-format on

struct TypeTraits {
  TensorType type;
  const char* name;  // "Q4_K", as gguf-py prints it
  uint32_t block;    // values per block; a row's length must be a multiple
  uint32_t block_bytes;
  // Decodes n values (a multiple of block) from src; null for types that files may hold but that cannot be run yet
  // (they open and are listed by `info`, a model that needs them is refused by name).
  void (*decode)(const void* src, float* dst, size_t n);
  // Whether all scales of n values are finite (float types: all values); null where decode is null.
  bool (*finite)(const void* src, size_t n);
};

// The row of a type, null for a number that is not in the table.
const TypeTraits* type_traits(int32_t type);

}  // namespace ld
