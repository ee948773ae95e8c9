// The encoders for AVX2. Compiled with -mavx2; nothing here may run before the processor is known to have it.
#include <cstring>

#include "codebook.h"
#include "encode.h"
#include "half.h"

namespace ld::quant {
namespace {

#include "encode.inl"

}  // namespace

const EncoderTable encoders_avx2 = {kEncoders, sizeof kEncoders / sizeof *kEncoders};

}  // namespace ld::quant
