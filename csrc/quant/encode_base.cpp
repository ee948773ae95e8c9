// The encoders with the instructions that every processor of the architecture has.
#include <cstring>

#include "codebook.h"
#include "encode.h"
#include "half.h"

namespace ld::quant {
namespace {

#include "encode.inl"

}  // namespace

const EncoderTable encoders_base = {kEncoders, sizeof kEncoders / sizeof *kEncoders};

}  // namespace ld::quant
