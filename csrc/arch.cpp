// The table of architectures and the checks of their hyper-parameters.
#include "arch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace ld {
namespace {

constexpr int kListed = -1;  // the file says of each layer whether it has a window

// What the metadata of an architecture leaves unsaid. Names are those of GGUF's `general.architecture`.
struct ArchRow {
  const char* name;
  NormKind norm = NormKind::rms;
  bool norm_bias = false;
  NormOrder norm_order = NormOrder::pre;
  bool embedding_norm = false;
  bool first_norm = true;
  bool learned_positions = false;
  bool token_types = false;
  bool scaled_embeddings = false;  // by the root of their width
  bool canvas_norm = false;
  bool layer_scales = false;
  bool qk_norm = false;
  bool value_norm = false;
  bool keys_as_values = false;
  float attention_scale = 0;
  Rope rope = Rope::none;
  int window_period = 0;  // every so many layers, the first included, one sees everything; 0 = no windows
  bool window_behind = false;
  Activation activation = Activation::silu;
  bool gated = false;
  bool fused_gate = false;
  HeadKind head = HeadKind::linear;
  RouterKind router = RouterKind::none;
  bool renormalise = false;  // weights of the chosen experts sum to 1, unless the file says otherwise
  bool experts_beside = false;
};

constexpr ArchRow kRows[] = {
    {.name = "gpt2",
     .norm = NormKind::layer,
     .norm_bias = true,
     .learned_positions = true,
     .activation = Activation::gelu_tanh},
    // llama.cpp's converter permutes the rows of Q and K of llama, llada and mistral3 to the interleaved layout.
    {.name = "llama", .rope = Rope::interleaved, .gated = true},
    {.name = "llada", .rope = Rope::interleaved, .gated = true},
    {.name = "mistral3", .rope = Rope::interleaved, .gated = true},
    {.name = "qwen2", .rope = Rope::half, .gated = true},
    {.name = "dream", .rope = Rope::half, .gated = true},
    {.name = "pangu-embedded", .rope = Rope::half, .gated = true},
    {.name = "qwen3", .qk_norm = true, .rope = Rope::half, .gated = true},
    {.name = "qwen3moe",
     .qk_norm = true,
     .rope = Rope::half,
     .gated = true,
     .router = RouterKind::softmax,
     .renormalise = true},
    {.name = "rnd1",
     .qk_norm = true,
     .rope = Rope::half,
     .gated = true,
     .router = RouterKind::softmax,
     .renormalise = true},
    {.name = "llada-moe", .qk_norm = true, .rope = Rope::half, .gated = true, .router = RouterKind::softmax},
    {.name = "bailingmoe2", .qk_norm = true, .rope = Rope::half, .gated = true, .router = RouterKind::sigmoid},
    {.name = "llada2", .qk_norm = true, .rope = Rope::half, .gated = true, .router = RouterKind::sigmoid},
    // BERT, RoBERTa, XLM-R, DistilBERT; XLM-R XL with localdiff.norm = "pre".
    {.name = "bert",
     .norm = NormKind::layer,
     .norm_bias = true,
     .norm_order = NormOrder::post,
     .learned_positions = true,
     .token_types = true,
     .activation = Activation::gelu_erf,
     .head = HeadKind::mlm},
    {.name = "modern-bert",
     .norm = NormKind::layer,
     .embedding_norm = true,
     .first_norm = false,
     .rope = Rope::half,
     .window_period = 3,
     .activation = Activation::gelu_erf,
     .gated = true,
     .fused_gate = true,
     .head = HeadKind::mlm},
    {.name = "diffusion-gemma",
     .norm_order = NormOrder::sandwich,
     .scaled_embeddings = true,
     .canvas_norm = true,
     .layer_scales = true,
     .qk_norm = true,
     .value_norm = true,
     .keys_as_values = true,
     .attention_scale = 1,
     .rope = Rope::half,
     .window_period = kListed,
     .window_behind = true,
     .activation = Activation::gelu_tanh,
     .gated = true,
     .router = RouterKind::softmax,
     .renormalise = true,
     .experts_beside = true},
};

struct ActivationName {
  const char* name;
  Activation activation;
};

constexpr ActivationName kActivations[] = {
    {"gelu", Activation::gelu_erf}, {"gelu_new", Activation::gelu_tanh}, {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"silu", Activation::silu},     {"swish", Activation::silu},
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

// Files that hold something else than a model, and what they are for.
constexpr struct {
  const char *type, *use;
} kOtherFiles[] = {
    {"adapter", "give it beside the model that it changes (--lora)"},
    {"imatrix", "it is for quantising (--imatrix)"},
    {"mmproj", "name the file of the language model beside it"},
};

void refuse_other_files(const Gguf& file) {
  const Metadata* found = file.find("general.type");
  if (found == nullptr || found->type != ValueType::string) return;
  for (const auto& [type, use] : kOtherFiles)
    if (file.string("general.type") == type)
      throw Error(LD_FILE, text("general.type is '%s', expected 'model'; %s", type, use));
}

// The keys of one architecture, with ranges.
class Keys {
 public:
  Keys(const Gguf& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  std::string name(const char* key) const { return prefix_ + key; }
  bool has(const char* key) const { return file_.find(name(key)) != nullptr; }
  int size(const char* key, uint64_t high) const { return bounded(key, file_.integer(name(key)), 1, high); }
  int size_or(const char* key, uint64_t absent, uint64_t low, uint64_t high) const {
    return bounded(key, file_.integer(name(key), absent), low, high);
  }
  double real_or(const char* key, double absent, double low, double high) const {
    return bounded_real(key, file_.real(name(key), absent), low, high);
  }
  double real(const char* key, double low, double high) const {
    return bounded_real(key, file_.real(name(key)), low, high);
  }
  // One number for every layer, or a list of one for each; `absent` where there is none.
  std::vector<int> sizes_or(const char* key, int layers, uint64_t absent, uint64_t high) const {
    const Metadata* found = file_.find(name(key));
    if (found == nullptr || found->type != ValueType::array)
      return std::vector<int>(layers, size_or(key, absent, 1, high));
    const bool whole = found->element == ValueType::u32 || found->element == ValueType::i32;
    if (!whole || found->count < static_cast<uint64_t>(layers))
      throw Error(LD_FILE, name(key) + " is not an array of one 32-bit number per layer");
    std::vector<int> sizes;
    for (int i = 0; i < layers; i++) {
      uint32_t value;
      std::memcpy(&value, found->data.data() + i * sizeof value, sizeof value);
      sizes.push_back(bounded(key, value, 1, high));
    }
    return sizes;
  }

 private:
  int bounded(const char* key, uint64_t value, uint64_t low, uint64_t high) const {
    if (value < low || value > high)
      throw Error(LD_FILE, text("%s is %llu, expected %llu to %llu", name(key).c_str(), (unsigned long long)value,
                                (unsigned long long)low, (unsigned long long)high));
    return static_cast<int>(value);
  }
  double bounded_real(const char* key, double value, double low, double high) const {
    if (!(value >= low && value <= high))
      throw Error(LD_FILE, text("%s is %g, expected %g to %g", name(key).c_str(), value, low, high));
    return value;
  }

  const Gguf& file_;
  std::string prefix_;
};

void read_shape(const Keys& keys, ModelConfig* config) {
  ModelConfig& c = *config;
  c.dim = keys.size("embedding_length", 1 << 16);
  c.layers = keys.size("block_count", 1 << 10);
  c.spare_layers = keys.size_or("nextn_predict_layers", 0, 0, c.layers - 1);
  c.layers -= c.spare_layers;
  c.heads = keys.size("attention.head_count", 1 << 10);
  c.ffn_dim = keys.size("feed_forward_length", 1 << 18);
  c.context_length = keys.size("context_length", 1 << 24);
  if (!keys.has("attention.key_length") && c.dim % c.heads != 0)
    throw Error(LD_FILE, text("%s is %d, not a multiple of the %d heads", keys.name("embedding_length").c_str(), c.dim,
                              c.heads));
  auto head_dim = [&](const char* key_length, const char* value_length, int absent) {
    const int found = keys.size_or(key_length, absent, 1, 1 << 10);
    if (keys.size_or(value_length, found, 1, 1 << 10) != found)
      throw Error(LD_FILE, keys.name(value_length) + " differs from the key length, which is not supported");
    return found;
  };
  c.head_dim = head_dim("attention.key_length", "attention.value_length", c.dim / c.heads);
  c.local_head_dim = head_dim("attention.key_length_swa", "attention.value_length_swa", c.head_dim);
}

// The heads of every layer, whose windows are known.
void read_heads(const Keys& keys, ModelConfig* config) {
  ModelConfig& c = *config;
  const std::vector<int> kv_heads = keys.sizes_or("attention.head_count_kv", c.layers, c.heads, c.heads);
  c.kv_heads = kv_heads[0];
  for (int i = 0; i < c.layers; i++) {
    if (c.heads % kv_heads[i] != 0)
      throw Error(LD_FILE, text("%s is %d, not a divisor of the %d heads", keys.name("attention.head_count_kv").c_str(),
                                kv_heads[i], c.heads));
    c.kv.push_back({kv_heads[i], c.windowed[i] ? c.local_head_dim : c.head_dim});
    if (!c.windowed[i]) c.kv_heads = kv_heads[i];
  }
}

// Which layers see a window only, and how far. `attention.sliding_window` counts both sides, or what a row sees behind it.
void read_windows(const Gguf& file, const Keys& keys, const ArchRow& row, ModelConfig* config) {
  int period = row.window_period;
  config->windowed.assign(config->layers, false);
  if (period == 0 || !keys.has("attention.sliding_window")) return;
  config->window = keys.size("attention.sliding_window", 1 << 24);
  config->window_behind = row.window_behind;
  if (!row.window_behind) config->window /= 2;
  const std::string key = keys.name("attention.sliding_window_pattern");
  const Metadata* pattern = file.find(key);
  if (period == kListed || (pattern != nullptr && pattern->type == ValueType::array)) {
    if (pattern == nullptr) throw Error(LD_FILE, key + " is missing, expected an array of one boolean per layer");
    if (pattern->element != ValueType::boolean || pattern->count < static_cast<uint64_t>(config->layers))
      throw Error(LD_FILE, key + " is not an array of one boolean per layer");
    for (int i = 0; i < config->layers; i++) config->windowed[i] = pattern->data[i] != 0;
    return;
  }
  period = keys.size_or("attention.sliding_window_pattern", period, 1, 1 << 10);
  for (int i = 0; i < config->layers; i++) config->windowed[i] = i % period != 0;
}

void read_experts(const Gguf& file, const Keys& keys, const ArchRow& row, ModelConfig* config) {
  if (row.router == RouterKind::none) return;
  MoeConfig& moe = config->moe;
  RouterRule& rule = moe.rule;
  moe.experts = keys.size("expert_count", 1 << 12);
  moe.beside = row.experts_beside;
  rule.used = keys.size("expert_used_count", std::min(moe.experts, kMostExpertsUsed));
  moe.expert_dim = keys.size_or("expert_feed_forward_length", std::max(1, config->ffn_dim / rule.used), 1, 1 << 18);
  moe.dense_layers = keys.size_or("leading_dense_block_count", 0, 0, config->layers);
  const int shared = keys.size_or("expert_shared_count", 0, 0, 64);
  moe.shared_dim = shared * keys.size_or("expert_shared_feed_forward_length", moe.expert_dim, 1, 1 << 18);

  // GGUF's numbers of the gating functions.
  const int gating = keys.size_or("expert_gating_func", row.router == RouterKind::softmax ? 1 : 2, 1, 2);
  rule.kind = gating == 1 ? RouterKind::softmax : RouterKind::sigmoid;
  rule.renormalise = file.boolean(keys.name("expert_weights_norm"), row.renormalise);
  const double scale = keys.real_or("expert_weights_scale", 1, 0, 1e6);
  rule.scale = scale == 0 ? 1 : static_cast<float>(scale);
  rule.groups = keys.size_or("expert_group_count", 1, 1, std::min(moe.experts, kMostGroups));
  rule.groups_used = keys.size_or("expert_group_used_count", rule.groups, 1, rule.groups);
  if (moe.experts % rule.groups != 0 || rule.used > moe.experts / rule.groups * rule.groups_used ||
      (rule.groups > 1 && moe.experts / rule.groups < 2))
    throw Error(LD_FILE, text("%d experts in %d groups, of which %d are kept, cannot give %d experts a row",
                              moe.experts, rule.groups, rule.groups_used, rule.used));
}

}  // namespace

ModelConfig read_config(const Gguf& file) {
  refuse_other_files(file);
  const ArchRow& row = find_row(file.string("general.architecture"));
  ModelConfig config{};
  config.arch = row.name;
  config.norm = row.norm;
  config.norm_bias = row.norm_bias;
  config.first_norm = row.first_norm;
  config.norm_order = row.norm_order;
  config.canvas_norm = row.canvas_norm;
  config.layer_scales = row.layer_scales;
  config.value_norm = row.value_norm;
  config.keys_as_values = row.keys_as_values;
  config.attention_scale = row.attention_scale;
  config.learned_positions = row.learned_positions;
  config.token_types = row.token_types;
  config.qk_norm = row.qk_norm;
  config.activation = row.activation;
  config.gated = row.gated;
  config.fused_gate = row.fused_gate;

  const Keys keys(file, config.arch + ".");
  read_shape(keys, &config);
  config.norm_eps = static_cast<float>(
      keys.real(row.norm == NormKind::rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", 0, 1));

  if (row.norm_order != NormOrder::sandwich) {
    const std::string_view order = file.string("localdiff.norm", row.norm_order == NormOrder::pre ? "pre" : "post");
    if (order != "pre" && order != "post")
      throw Error(LD_FILE, "localdiff.norm is '" + std::string(order) + "', expected pre or post");
    config.norm_order = order == "pre" ? NormOrder::pre : NormOrder::post;
  }
  // What normalises after its sums normalises the embeddings too, and its last sum is the output.
  config.embedding_norm = row.embedding_norm || config.norm_order == NormOrder::post;
  config.output_norm = config.norm_order != NormOrder::post;
  config.embedding_scale = row.scaled_embeddings ? std::sqrt(static_cast<float>(config.dim)) : 1.0f;
  config.logit_cap = static_cast<float>(keys.real_or("final_logit_softcapping", 0, 0, 1e6));

  const std::string_view head = file.string("localdiff.head", row.head == HeadKind::mlm ? "mlm" : "linear");
  if (head != "mlm" && head != "linear")
    throw Error(LD_FILE, "localdiff.head is '" + std::string(head) + "', expected linear or mlm");
  config.head = head == "mlm" ? HeadKind::mlm : HeadKind::linear;

  const std::string activation_key = keys.name("hidden_activation");
  if (file.find(activation_key) != nullptr) {
    const std::string_view wanted = file.string(activation_key);
    const ActivationName* found = nullptr;
    for (const ActivationName& known : kActivations)
      if (wanted == known.name) found = &known;
    if (found == nullptr) throw Error(LD_FILE, activation_key + " is '" + std::string(wanted) + "', not supported");
    config.activation = found->activation;
  }

  read_windows(file, keys, row, &config);
  read_heads(keys, &config);
  config.rope = config.local_rope = read_rope(file, config.arch + ".", row.rope, config.head_dim);
  if (config.window > 0) {
    config.local_rope.theta = keys.real_or("rope.freq_base_swa", config.rope.theta, 1.000001, 1e12);
    const int same = std::min(config.rope.dims, config.local_head_dim);
    config.local_rope.dims = keys.size_or("rope.dimension_count_swa", same, 2, config.local_head_dim);
    if (config.local_rope.dims % 2 != 0)
      throw Error(LD_FILE, text("%s is %d, expected an even number", keys.name("rope.dimension_count_swa").c_str(),
                                config.local_rope.dims));
  }
  read_experts(file, keys, row, &config);
  return config;
}

}  // namespace ld
