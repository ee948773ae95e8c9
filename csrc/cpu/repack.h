// From blocks of the file to records of a panel (gemm.h): one row per type that can be multiplied, in one table.
// Weights are never requantised: a record holds the file's values, only their order and width differ.
// Not here: memory, threads and checks (pack.cpp), unpacking (gemm_<row>.cpp).
#pragma once

#include "cpu/gemm.h"

namespace ld {

struct Repack {
  TensorType type;
  PackedKind kind;
  // Writes `count` records of a panel. rows[c] is the first block of channel c, a record is one block (float kinds: one
  // value); all `panel` channels must be readable, absent ones as zeros.
  void (*records)(const uint8_t* const* rows, int panel, int count, uint8_t* out);
};

// The row of a type, null where it cannot be multiplied.
const Repack* find_repack(TensorType type);

}  // namespace ld
