// Rotary positions as data: how a file scales them, and the frequencies that follow. Not here: the rotation (device).
#pragma once

#include <string>
#include <vector>

#include "gguf.h"
#include "ops.h"

namespace ld {

struct RopeConfig {
  Rope kind;
  int dims;       // leading values of a head that are rotated
  double theta;   // base
  double factor;  // linear: positions are divided by it; yarn: by how much the context was stretched
  // YaRN (Peng et al., 2023): frequencies that turn less than beta_slow times in the original context are divided by
  // the factor, those that turn more than beta_fast times are kept, the rest is blended.
  bool yarn;
  double original_length, beta_fast, beta_slow;
  float magnitude;    // of rotated queries and keys
  float temperature;  // RopeParams::temperature, over original_length
};

// Reads `prefix`rope.* and attention.temperature_scale. Throws Error(LD_FILE).
RopeConfig read_rope(const Gguf& file, const std::string& prefix, Rope kind, int head_dim);

// Radians per position, [dims / 2]. `divisors` [dims / 2] are the file's own per frequency, 1 where it has none.
std::vector<float> rope_frequencies(const RopeConfig& config, const std::vector<float>& divisors);

}  // namespace ld
