// The table of architectures and the checks of their hyper-parameters.
#include "arch.h"

#include "error.h"

namespace ld {
namespace {

struct ArchRow {
  const char* name;
  NormKind norm;
  bool learned_positions;
  Rope rope;
  Activation activation;
  bool gated;
};

constexpr ArchRow kRows[] = {
    {"gpt2", NormKind::layer, true, Rope::none, Activation::gelu_tanh, false},
    // llama.cpp's converter permutes the rows of Q and K of llama files to the interleaved layout.
    {"llama", NormKind::rms, false, Rope::interleaved, Activation::silu, true},
    {"qwen2", NormKind::rms, false, Rope::half, Activation::silu, true},
};

std::string known_architectures() {
  std::string names;
  for (const ArchRow& row : kRows) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

const ArchRow& find_row(std::string_view name) {
  for (const ArchRow& row : kRows)
    if (name == row.name) return row;
  throw Error(LD_FILE,
              "architecture '" + std::string(name) + "' is not supported; supported: " + known_architectures());
}

int bounded(const std::string& key, uint64_t value, uint64_t low, uint64_t high) {
  if (value < low || value > high)
    throw Error(LD_FILE, text("%s is %llu, expected %llu to %llu", key.c_str(), (unsigned long long)value,
                              (unsigned long long)low, (unsigned long long)high));
  return static_cast<int>(value);
}

}  // namespace

ModelConfig read_config(const Gguf& file) {
  const ArchRow& row = find_row(file.string("general.architecture"));
  ModelConfig config{};
  config.arch = row.name;
  config.norm = row.norm;
  config.learned_positions = row.learned_positions;
  config.rope = row.rope;
  config.activation = row.activation;
  config.gated = row.gated;

  auto key = [&](const char* name) { return config.arch + "." + name; };
  auto size = [&](const char* name, uint64_t high) { return bounded(key(name), file.integer(key(name)), 1, high); };
  auto size_or = [&](const char* name, uint64_t absent, uint64_t high) {
    return bounded(key(name), file.integer(key(name), absent), 1, high);
  };
  config.dim = size("embedding_length", 1 << 16);
  config.layers = size("block_count", 1 << 10);
  config.heads = size("attention.head_count", 1 << 10);
  config.kv_heads = size_or("attention.head_count_kv", config.heads, config.heads);
  config.ffn_dim = size("feed_forward_length", 1 << 18);
  config.context_length = size("context_length", 1 << 24);
  if (file.find(key("attention.key_length")) == nullptr && config.dim % config.heads != 0)
    throw Error(LD_FILE, text("%s is %d, not a multiple of the %d heads", key("embedding_length").c_str(), config.dim,
                              config.heads));
  config.head_dim = size_or("attention.key_length", config.dim / config.heads, 1 << 10);
  if (size_or("attention.value_length", config.head_dim, 1 << 10) != config.head_dim)
    throw Error(LD_FILE, key("attention.value_length") + " differs from the key length, which is not supported");
  if (config.heads % config.kv_heads != 0)
    throw Error(LD_FILE, text("%s is %d, not a divisor of the %d heads", key("attention.head_count_kv").c_str(),
                              config.kv_heads, config.heads));

  const char* eps = row.norm == NormKind::rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
  config.norm_eps = static_cast<float>(file.real(key(eps)));
  if (!(config.norm_eps >= 0 && config.norm_eps < 1))
    throw Error(LD_FILE, text("%s is %g, expected 0 to 1", key(eps).c_str(), config.norm_eps));

  if (config.rope != Rope::none) {
    config.rope_dims = size_or("rope.dimension_count", config.head_dim, config.head_dim);
    config.rope_theta = file.real(key("rope.freq_base"), 10000.0);
    if (!(config.rope_theta >= 1 && config.rope_theta <= 1e12) || config.rope_dims % 2 != 0)
      throw Error(LD_FILE,
                  text("rotary positions: base %g over %d values, expected a base of 1 or more over an even number",
                       config.rope_theta, config.rope_dims));
    const std::string_view scaling = file.string(key("rope.scaling.type"), "none");
    config.rope_factor = 1.0;
    if (scaling == "linear") {
      config.rope_factor = file.real(key("rope.scaling.factor"));
    } else if (scaling != "none") {
      throw Error(LD_FILE, key("rope.scaling.type") + " is '" + std::string(scaling) + "', supported: none, linear");
    }
    if (!(config.rope_factor > 0 && config.rope_factor <= 1e6))
      throw Error(LD_FILE,
                  text("%s is %g, expected more than 0", key("rope.scaling.factor").c_str(), config.rope_factor));
  }
  return config;
}

}  // namespace ld
