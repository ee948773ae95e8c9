#include "rope.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace ld {
namespace {

constexpr double kPi = 3.14159265358979323846;

// YaRN's magnitude: 0.1 m ln(s) + 1.
double stretch(double factor, double weight) { return factor <= 1 ? 1 : 0.1 * weight * std::log(factor) + 1; }

// The index of the frequency that turns `turns` times within the original context.
double index_of(double turns, const RopeConfig& c) {
  return c.dims * std::log(c.original_length / (turns * 2 * kPi)) / (2 * std::log(c.theta));
}

}  // namespace

RopeConfig read_rope(const Gguf& file, const std::string& prefix, Rope kind, int head_dim) {
  RopeConfig config{};
  config.kind = kind;
  if (kind == Rope::none) return config;
  auto real = [&](const char* name, double absent, double low, double high) {
    const std::string key = prefix + name;
    const double value = file.real(key, absent);
    if (!(value >= low && value <= high))
      throw Error(LD_FILE, text("%s is %g, expected %g to %g", key.c_str(), value, low, high));
    return value;
  };
  const std::string dims_key = prefix + "rope.dimension_count";
  const uint64_t dims = file.integer(dims_key, head_dim);
  if (dims < 2 || dims > static_cast<uint64_t>(head_dim) || dims % 2 != 0)
    throw Error(LD_FILE, text("%s is %llu, expected an even number up to the head's %d values", dims_key.c_str(),
                              (unsigned long long)dims, head_dim));
  config.dims = static_cast<int>(dims);
  config.theta = real("rope.freq_base", 10000, 1.000001, 1e12);
  config.factor = 1;
  config.magnitude = 1;
  config.temperature = static_cast<float>(real("attention.temperature_scale", 0, 0, 100));

  const std::string_view scaling = file.string(prefix + "rope.scaling.type", "none");
  if (scaling != "none" && scaling != "linear" && scaling != "yarn")
    throw Error(LD_FILE, prefix + "rope.scaling.type is '" + std::string(scaling) + "', supported: none, linear, yarn");
  if (scaling != "none") config.factor = real("rope.scaling.factor", 1, 1e-6, 1e6);
  if (scaling == "yarn" || config.temperature != 0) {
    config.original_length = static_cast<double>(file.integer(prefix + "rope.scaling.original_context_length"));
    if (!(config.original_length >= 1))
      throw Error(LD_FILE, prefix + "rope.scaling.original_context_length is 0, expected a length");
  }
  if (scaling == "yarn") {
    config.yarn = true;
    config.beta_fast = real("rope.scaling.yarn_beta_fast", 32, 1e-6, 1e6);
    config.beta_slow = real("rope.scaling.yarn_beta_slow", 1, 1e-6, 1e6);
    const double weight = real("rope.scaling.yarn_log_multiplier", 0, 0, 1e3);
    config.magnitude =
        static_cast<float>(stretch(config.factor, 1) / (weight == 0 ? 1 : stretch(config.factor, weight)) *
                           real("rope.scaling.attn_factor", 1, 1e-6, 1e6));
  }
  return config;
}

std::vector<float> rope_frequencies(const RopeConfig& config, const std::vector<float>& divisors) {
  double low = 0, high = 0;
  if (config.yarn) {
    low = std::max(std::floor(index_of(config.beta_fast, config)), 0.0);
    high = std::min(std::ceil(index_of(config.beta_slow, config)), config.dims - 1.0);
    if (low == high) high += 0.001;  // a step, not a division by zero
  }
  std::vector<float> frequencies(divisors.size());
  for (size_t i = 0; i < frequencies.size(); i++) {
    const double turning = std::pow(config.theta, -2.0 * i / config.dims) / divisors[i];
    const double kept = config.yarn ? 1 - std::clamp((i - low) / (high - low), 0.0, 1.0) : 0;
    frequencies[i] = static_cast<float>(turning * (kept + (1 - kept) / config.factor));
  }
  return frequencies;
}

}  // namespace ld
