// The sixteen levels of IQ4_NL and IQ4_XS, ascending: part of the format.
#pragma once

#include <cstdint>

namespace ld::quant {

constexpr int8_t kCodebook[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

}  // namespace ld::quant
