// The quantiser: rows of float32 become blocks of a tensor type, on all threads. The bytes depend on the values and the
// importance alone, not on threads, processor or how rows are divided over calls. Not here: which type a tensor gets.
#pragma once

#include <cstdint>

#include "cpu/pool.h"
#include "types.h"

namespace ld {

// Whether quantize_rows writes a type.
bool can_quantize(TensorType type);

// Writes rows * columns values as blocks to out, which holds rows * columns / block * block_bytes bytes.
// importance: null or [columns], not negative: the cost of a squared error in each column, relative to the others.
// Throws Error(LD_INVALID) naming the row for values that are not finite or that the type cannot hold, and for columns
// or importance that do not fit.
void quantize_rows(const TypeTraits& type, const float* from, uint64_t rows, uint64_t columns, const float* importance,
                   Pool& pool, uint8_t* out);

}  // namespace ld
