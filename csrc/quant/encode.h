// The encoders of block formats, one table per instruction set; all tables write the same bytes. Private to quant/; the
// quantiser is quantize.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace ld::quant {

// Whole blocks of one or more rows that follow each other in memory.
struct Source {
  const float* values;   // [count], finite
  size_t count;          // a multiple of the type's block
  const float* weights;  // [columns], positive: what an error in each column costs
  size_t columns;        // a multiple of the type's block; values begins at column 0
};

struct Encoder {
  TensorType type;
  void (*encode)(const Source& source, uint8_t* out);
};

struct EncoderTable {
  const Encoder* rows;
  int count;
};

extern const EncoderTable encoders_base;
#if defined(__x86_64__)
extern const EncoderTable encoders_avx2;
extern const EncoderTable encoders_avx512_vnni;
#endif

}  // namespace ld::quant
