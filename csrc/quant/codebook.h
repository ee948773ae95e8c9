// The sixteen values that four bits name: parts of the formats.
#pragma once

#include <cstdint>

namespace ld::quant {

// IQ4_NL and IQ4_XS, ascending
constexpr int8_t kCodebook[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// MXFP4, doubled
constexpr int8_t kE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace ld::quant
