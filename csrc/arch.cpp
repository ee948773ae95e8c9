// The table of architectures and the checks of their hyper-parameters.
#include "arch.h"

#include <algorithm>

#include "error.h"

namespace ld {
namespace {

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
  bool qk_norm = false;
  Rope rope = Rope::none;
  int window_period = 0;  // every so many layers, the first included, one sees everything; 0 = no windows
  Activation activation = Activation::silu;
  bool gated = false;
  bool fused_gate = false;
  HeadKind head = HeadKind::linear;
  RouterKind router = RouterKind::none;
  bool renormalise = false;  // weights of the chosen experts sum to 1, unless the file says otherwise
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
  c.kv_heads = keys.size_or("attention.head_count_kv", c.heads, 1, c.heads);
  c.ffn_dim = keys.size("feed_forward_length", 1 << 18);
  c.context_length = keys.size("context_length", 1 << 24);
  if (!keys.has("attention.key_length") && c.dim % c.heads != 0)
    throw Error(LD_FILE, text("%s is %d, not a multiple of the %d heads", keys.name("embedding_length").c_str(), c.dim,
                              c.heads));
  c.head_dim = keys.size_or("attention.key_length", c.dim / c.heads, 1, 1 << 10);
  if (keys.size_or("attention.value_length", c.head_dim, 1, 1 << 10) != c.head_dim)
    throw Error(LD_FILE, keys.name("attention.value_length") + " differs from the key length, which is not supported");
  if (c.heads % c.kv_heads != 0)
    throw Error(LD_FILE, text("%s is %d, not a divisor of the %d heads", keys.name("attention.head_count_kv").c_str(),
                              c.kv_heads, c.heads));
}

// Which layers see a window only, and how far. `attention.sliding_window` counts both sides.
void read_windows(const Gguf& file, const Keys& keys, int period, ModelConfig* config) {
  config->windowed.assign(config->layers, false);
  if (period == 0 || !keys.has("attention.sliding_window")) return;
  config->window = keys.size("attention.sliding_window", 1 << 24) / 2;
  config->local_theta = keys.real_or("rope.freq_base_swa", config->rope.theta, 1.000001, 1e12);
  const std::string key = keys.name("attention.sliding_window_pattern");
  const Metadata* pattern = file.find(key);
  if (pattern != nullptr && pattern->type == ValueType::array) {
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

  const std::string_view order = file.string("localdiff.norm", row.norm_order == NormOrder::pre ? "pre" : "post");
  if (order != "pre" && order != "post")
    throw Error(LD_FILE, "localdiff.norm is '" + std::string(order) + "', expected pre or post");
  config.norm_order = order == "pre" ? NormOrder::pre : NormOrder::post;
  // What normalises after its sums normalises the embeddings too, and its last sum is the output.
  config.embedding_norm = row.embedding_norm || config.norm_order == NormOrder::post;
  config.output_norm = config.norm_order == NormOrder::pre;

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

  config.rope = read_rope(file, config.arch + ".", row.rope, config.head_dim);
  read_windows(file, keys, row.window_period, &config);
  read_experts(file, keys, row, &config);
  return config;
}

}  // namespace ld
