#include "loader.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace ld {
namespace {

// Tensors that files of these architectures hold for other purposes. Everything else that is not used is refused.
struct Spare {
  const char* part;  // of the name
  const char* what;
};
constexpr Spare kSpares[] = {
    {".nextn.", "layers that predict further tokens"},
    {".attn_rot_embd.", "tables of rotary positions, which are computed"},
    {"cls.", "a classifier"},
};

// The first few names: a wrong architecture lacks hundreds.
std::string join(const std::vector<std::string>& names) {
  std::string list;
  for (size_t i = 0; i < names.size() && i < 8; i++) list += (i ? ", " : "") + names[i];
  if (names.size() > 8) list += " and " + std::to_string(names.size() - 8) + " more";
  return list;
}

std::string block_name(int layer) { return "blk." + std::to_string(layer) + "."; }

void check_type(const Tensor& tensor) {
  if (tensor.type->decode == nullptr)
    throw Error(LD_FILE, text("%.*s: type %s cannot be run; convert the model to another type", (int)tensor.name.size(),
                              tensor.name.data(), tensor.type->name));
}

void check_shape(const Tensor& tensor, uint64_t rows, uint64_t columns) {
  if (tensor.columns() != columns || tensor.rows() != rows)
    throw Error(LD_FILE,
                text("%.*s: shape [%llu, %llu], expected [%llu, %llu]", (int)tensor.name.size(), tensor.name.data(),
                     (unsigned long long)tensor.rows(), (unsigned long long)tensor.columns(), (unsigned long long)rows,
                     (unsigned long long)columns));
  check_type(tensor);
}

std::vector<float> decode(const Tensor& tensor) {
  std::vector<float> values(tensor.columns() * tensor.rows());
  tensor.type->decode(tensor.data.data(), values.data(), values.size());
  return values;
}

}  // namespace

// Rows [first, first + taken) of each of `count` matrices [rows, columns], which lie one after the other in a tensor.
struct Loader::Stack {
  std::string name;
  int count, rows, columns, first, taken;
};

void Loader::run() {
  const Tensor* embedding = require("token_embd.weight");
  if (embedding != nullptr) model_.config_.vocab = static_cast<int>(embedding->rows());
  declare();
  refuse_missing();
  sort_unused();
  adapters_.refuse_unused();
  declaring_ = false;
  declare();
  for (const Tensor& tensor : file_.tensors())
    if (used_.count(std::string(tensor.name))) model_.parameters_ += tensor.columns() * tensor.rows();
}

void Loader::declare() {
  Model& m = model_;
  const ModelConfig& c = m.config_;
  part_ = &m.parts_.front();
  m.token_embedding_ = table("token_embd.weight", c.vocab);
  if (c.learned_positions) m.position_embedding_ = table("position_embd.weight", c.context_length);
  if (c.token_types) {
    if (const Tensor* types = find("token_types.weight"))
      m.type_embedding_ = table("token_types.weight", static_cast<int>(types->rows()));
  }
  if (c.embedding_norm) m.embedding_norm_ = norm("token_embd_norm");
  if (c.canvas_norm) m.canvas_norm_ = plain_norm(c.dim);
  if (c.canvas_norm && file_.tensor("self_cond_pre_norm.weight") != nullptr) feedback();
  m.layers_.clear();
  for (const Part& part : m.parts_) {
    part_ = &part;
    const RopeParams everywhere = rope(0, c.rope, "rope_freqs.weight");
    const RopeParams windowed = c.window > 0 ? rope(1, c.local_rope, nullptr) : everywhere;
    for (int i = part.first; i < part.last; i++) {
      m.layers_.push_back(layer(i));
      m.layers_.back().attention.rope = m.layers_.back().windowed ? windowed : everywhere;
    }
  }
  head();
  if (const Tensor* classes = file_.tensor("length_head.classes.weight")) m.length_head_ = length_head(*classes);
}

Layer Loader::layer(int index) {
  const ModelConfig& c = model_.config_;
  const std::string block = block_name(index);
  const bool pre = c.norm_order != NormOrder::post, sandwich = c.norm_order == NormOrder::sandwich;
  const int head_dim = c.kv[index].head_dim;
  Layer layer;
  layer.windowed = c.windowed[index];
  layer.attention.index = index;
  layer.attention.scale = c.attention_scale > 0 ? c.attention_scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  if (pre && (index > 0 || c.first_norm)) layer.attention_join.before = norm(block + "attn_norm");
  if (file_.tensor(block + "attn_qkv.weight") != nullptr) {
    layer.qkv = {adaptable(block + "attn_qkv", c.qkv_dim(index), c.dim)};
  } else {
    layer.qkv = {adaptable(block + "attn_q", c.q_dim(index), c.dim),
                 adaptable(block + "attn_k", c.kv_dim(index), c.dim)};
    const bool keys = c.keys_as_values && file_.tensor(block + "attn_v.weight") == nullptr;
    layer.qkv.push_back(keys ? layer.qkv.back() : adaptable(block + "attn_v", c.kv_dim(index), c.dim));
  }
  if (c.qk_norm) {
    layer.attention.q_norm = head_norm(block + "attn_q_norm", head_dim);
    layer.attention.k_norm = head_norm(block + "attn_k_norm", head_dim);
  }
  if (c.value_norm) layer.attention.v_norm = plain_norm(head_dim);
  layer.attention_output = adaptable(block + "attn_output", c.dim, c.q_dim(index));
  if (sandwich) layer.attention_join.inner = norm(block + "post_attention_norm");
  if (!pre) layer.attention_join.after = norm(block + "attn_output_norm");

  if (pre) layer.ffn_join.before = norm(block + "ffn_norm");
  if (c.has_dense(index)) layer.ffn = feed_forward(block, "", c.ffn_dim);
  if (c.has_experts(index)) {
    if (c.moe.shared_dim > 0) layer.ffn = feed_forward(block, "_shexp", c.moe.shared_dim);
    layer.experts = experts(block, &layer.expert_weights);
    layer.experts_before = c.moe.beside ? norm(block + "pre_ffw_norm_2") : layer.ffn_join.before;
    if (c.moe.beside) layer.ffn_inner = norm(block + "post_ffw_norm_1");
    if (c.moe.beside) layer.experts_inner = norm(block + "post_ffw_norm_2");
  }
  if (sandwich) layer.ffn_join.inner = norm(block + "post_ffw_norm");
  if (!pre) layer.ffn_join.after = norm(block + "layer_output_norm");
  if (c.layer_scales) {
    layer.prompt_scale = number(block + "enc_layer_output_scale.weight");
    layer.canvas_scale = number(block + "layer_output_scale.weight");
  }
  for (const auto& parts : {layer.qkv, {layer.attention_output}, layer.ffn.in, {layer.ffn.down}}) widen(parts);
  return layer;
}

FeedForward Loader::feed_forward(const std::string& block, const char* suffix, int width) {
  const ModelConfig& c = model_.config_;
  FeedForward ffn;
  ffn.width = width;
  ffn.activation = c.activation;
  ffn.gated = c.gated;
  if (c.fused_gate) {
    ffn.in = {adaptable(block + "ffn_up" + suffix, 2 * width, c.dim)};
  } else {
    if (c.gated) ffn.in.push_back(adaptable(block + "ffn_gate" + suffix, width, c.dim));
    ffn.in.push_back(adaptable(block + "ffn_up" + suffix, width, c.dim));
  }
  ffn.down = adaptable(block + "ffn_down" + suffix, c.dim, width);
  return ffn;
}

Experts Loader::experts(const std::string& block, std::vector<const Weight*>* weights) {
  const ModelConfig& c = model_.config_;
  const MoeConfig& moe = c.moe;
  Experts experts{};
  experts.rule = moe.rule;
  experts.count = moe.experts;
  experts.activation = c.activation;
  experts.router = float_matrix(block + "ffn_gate_inp.weight", moe.experts, c.dim);
  if (moe.beside) experts.router_norm = router_norm(block + "ffn_gate_inp.scale");
  experts.bias = vector(block + "exp_probs_b.bias", moe.experts, true);
  experts.gain = vector(block + "ffn_down_exps.scale", moe.experts, true);
  const std::string both = block + "ffn_gate_up_exps.weight";
  const int width = moe.expert_dim;
  if (file_.tensor(both) != nullptr) {
    slices({both, moe.experts, 2 * width, c.dim, 0, width}, weights);
    slices({both, moe.experts, 2 * width, c.dim, width, width}, weights);
  } else {
    slices({block + "ffn_gate_exps.weight", moe.experts, width, c.dim, 0, width}, weights);
    slices({block + "ffn_up_exps.weight", moe.experts, width, c.dim, 0, width}, weights);
  }
  slices({block + "ffn_down_exps.weight", moe.experts, c.dim, width, 0, c.dim}, weights);
  experts.gate = weights->data();
  experts.up = experts.gate + moe.experts;
  experts.down = experts.up + moe.experts;
  return experts;
}

void Loader::feedback() {
  const ModelConfig& c = model_.config_;
  Feedback& feedback = model_.feedback_;
  feedback.norm = norm("self_cond_pre_norm");
  feedback.ffn.width = c.ffn_dim;
  feedback.ffn.activation = c.activation;
  feedback.ffn.gated = true;
  feedback.ffn.in = {adaptable("self_cond_gate", c.ffn_dim, c.dim), adaptable("self_cond_up", c.ffn_dim, c.dim)};
  feedback.ffn.down = adaptable("self_cond_down", c.dim, c.ffn_dim);
  for (const auto& parts : {feedback.ffn.in, {feedback.ffn.down}}) widen(parts);
}

void Loader::head() {
  const ModelConfig& c = model_.config_;
  OutputHead& head = model_.head_;
  if (c.output_norm) head.norm = norm("output_norm");
  if (c.head == HeadKind::mlm) {
    if (file_.tensor("mlm_dense.weight") == nullptr)
      throw Error(LD_FILE, "the file holds a " + c.arch +
                               " encoder without its masked-language-model head (mlm_dense.weight), so it cannot "
                               "propose tokens; convert a checkpoint that kept its head");
    head.dense = linear("mlm_dense", c.dim, c.dim);
    head.dense_norm = norm("mlm_norm");
  }
  // Without a head of its own the model reuses the token embedding.
  const bool own = file_.tensor("output.weight") != nullptr;
  head.decoder.weight = matrix(own ? "output.weight" : "token_embd.weight", c.vocab, c.dim, Use::multiply);
  head.decoder.bias = vector("output.bias", c.vocab, true);
  head.decoder.cap = c.logit_cap;
  if (model_.feedback_.ffn.width > 0) head.decoder.table = model_.token_embedding_;
  head.decoder.table_scale = c.embedding_scale;
}

// The encoder layer of torch, normed after its sums, with as many heads as the model's layers.
LengthHead Loader::length_head(const Tensor& classes) {
  ModelConfig& c = model_.config_;
  const std::string block = "length_head.";
  constexpr float kEps = 1e-5f;
  if (c.kv_heads != c.heads || c.heads * c.head_dim != c.dim)
    throw Error(LD_FILE,
                text("the length head has %d heads of %d values and as many of keys, the layers %d of %d and %d "
                     "of keys; convert the model without the head",
                     c.heads, c.dim / c.heads, c.heads, c.head_dim, c.kv_heads));
  c.lengths = static_cast<int>(std::min<uint64_t>(classes.rows(), INT32_MAX));
  LengthHead head;
  c.kv.resize(c.layers);
  c.kv.push_back({c.heads, c.head_dim});
  head.layer.attention.index = c.layers;  // its state follows that of the model's layers
  head.layer.attention.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  head.layer.qkv = {linear(block + "attn_qkv", c.qkv_dim(c.layers), c.dim)};
  head.layer.attention_output = linear(block + "attn_output", c.dim, c.dim);
  head.layer.attention_join.after = layer_norm(block + "attn_output_norm", kEps);
  head.layer.ffn.in = {linear(block + "ffn_up", c.ffn_dim, c.dim)};
  head.layer.ffn.down = linear(block + "ffn_down", c.dim, c.ffn_dim);
  head.layer.ffn.width = c.ffn_dim;
  head.layer.ffn.activation = Activation::relu;
  head.layer.ffn_join.after = layer_norm(block + "layer_output_norm", kEps);
  head.dense = linear(block + "dense", c.ffn_dim, c.dim);
  head.classes = linear(block + "classes", c.lengths, c.ffn_dim);
  return head;
}

// `divisors`: the tensor that each frequency is divided by, null = none.
RopeParams Loader::rope(int table, const RopeConfig& c, const char* name) {
  if (c.kind == Rope::none) return {};
  std::vector<float> divisors(c.dims / 2, 1.0f);
  const Tensor* tensor = name == nullptr ? nullptr : find(name);
  if (tensor != nullptr) {
    check_shape(*tensor, 1, divisors.size());
    divisors = decode(*tensor);
  }
  for (size_t i = 0; i < divisors.size(); i++)
    if (!(divisors[i] > 0 && std::isfinite(divisors[i])))
      throw Error(LD_FILE, text("%s: value %zu is %g, expected more than 0", name, i, divisors[i]));
  if (declaring_) return {};
  RopeParams params{};
  params.kind = c.kind;
  params.dims = c.dims;
  params.frequencies = upload(rope_frequencies(c, divisors));
  params.table = table;
  params.magnitude = c.magnitude;
  params.temperature = c.temperature;
  params.temperature_length = static_cast<float>(c.original_length);
  return params;
}

// ---- tensors ----

const Tensor* Loader::find(const std::string& name) {
  const Tensor* tensor = file_.tensor(name);
  if (tensor != nullptr) used_.insert(name);
  return tensor;
}

const Tensor* Loader::require(const std::string& name) {
  const Tensor* tensor = find(name);
  if (tensor == nullptr && declaring_) missing_.push_back(name);
  return tensor;
}

const Weight* Loader::pack(const Tensor& tensor, Use use) {
  model_.weights_.push_back({part_->ops, nullptr});  // room first, so that a packed weight is never lost
  return model_.weights_.back().weight = part_->ops->pack(part_->device, tensor, use);
}

const Weight* Loader::matrix(const std::string& name, int rows, int columns, Use use) {
  const Tensor* tensor = require(name);
  if (tensor == nullptr) return nullptr;
  check_shape(*tensor, rows, columns);
  if (declaring_) return nullptr;
  const Weight* weight = pack(*tensor, use);
  if (use == Use::multiply) {
    // The packed copy replaces the file's; a table that shares the tensor reads the rows that it needs again.
    file_.forget(*tensor);
    model_.multiplied_.push_back({name, columns, {weight}});
  }
  return weight;
}

const Weight* Loader::table(const std::string& name, int rows) {
  return matrix(name, rows, model_.config_.dim, Use::gather);
}

// A matrix that is multiplied in float32 whatever its type.
const Weight* Loader::float_matrix(const std::string& name, int rows, int columns) {
  const Tensor* tensor = require(name);
  if (tensor == nullptr) return nullptr;
  check_shape(*tensor, rows, columns);
  if (declaring_) return nullptr;
  const Weight* weight = pack_floats(name, rows, columns, decode(*tensor));
  model_.multiplied_.push_back({name, columns, {weight}});
  return weight;
}

const Weight* Loader::pack_floats(const std::string& name, int rows, int columns, const std::vector<float>& values) {
  Tensor floats{name, type_traits(static_cast<int32_t>(TensorType::f32)), 2, {1, 1, 1, 1}, {}};
  floats.dims[0] = columns;
  floats.dims[1] = rows;
  floats.data = {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)};
  return pack(floats, Use::multiply);
}

// Appends the matrices that a tensor holds.
void Loader::slices(const Stack& s, std::vector<const Weight*>* out) {
  const Tensor* tensor = require(s.name);
  if (tensor != nullptr) {
    if (tensor->dims[1] != static_cast<uint64_t>(s.rows) || tensor->dims[2] != static_cast<uint64_t>(s.count))
      throw Error(LD_FILE, text("%s: shape [%llu, %llu, %llu], expected [%d, %d, %d]", s.name.c_str(),
                                (unsigned long long)tensor->dims[2], (unsigned long long)tensor->dims[1],
                                (unsigned long long)tensor->dims[0], s.count, s.rows, s.columns));
    check_shape(*tensor, static_cast<uint64_t>(s.count) * s.rows, s.columns);
  }
  if (declaring_) return;
  const size_t row_bytes = tensor->data.size() / s.count / s.rows;
  Tensor slice = *tensor;
  slice.n_dims = 2;
  slice.dims[1] = s.taken;
  slice.dims[2] = 1;
  for (int i = 0; i < s.count; i++) {
    const size_t row = static_cast<size_t>(i) * s.rows + s.first;
    slice.data = tensor->data.subspan(row * row_bytes, s.taken * row_bytes);
    out->push_back(pack(slice, Use::multiply));
    file_.forget(slice);
  }
  // Matrices that were cut out of one read the same, so one of them tells what all of them do.
  if (s.first == 0) model_.multiplied_.push_back({s.name, s.columns, {out->end() - s.count, out->end()}});
}

const float* Loader::vector(const std::string& name, int length, bool optional) {
  const Tensor* tensor = optional ? find(name) : require(name);
  if (tensor == nullptr) return nullptr;
  check_shape(*tensor, 1, length);
  if (declaring_) return nullptr;
  const std::vector<float> values = decode(*tensor);
  for (float value : values)
    if (!std::isfinite(value)) throw Error(LD_FILE, name + ": holds a value that is not finite");
  return upload(values);
}

float Loader::number(const std::string& name) {
  const Tensor* tensor = require(name);
  if (tensor == nullptr) return 1;
  check_shape(*tensor, 1, 1);
  const float value = decode(*tensor)[0];
  if (!std::isfinite(value)) throw Error(LD_FILE, name + ": is not finite");
  return value;
}

const float* Loader::upload(const std::vector<float>& values) {
  model_.vectors_.push_back({part_->ops, nullptr});
  model_.vector_bytes_ += values.size() * sizeof(float);
  return model_.vectors_.back().vector = part_->ops->upload(part_->device, values.data(), values.size());
}

Linear Loader::linear(const std::string& name, int n, int k) {
  return {matrix(name + ".weight", n, k, Use::multiply), vector(name + ".bias", n, true), n};
}

// A linear layer to which the forward pass can add what adapters say.
Linear Loader::adaptable(const std::string& name, int n, int k) {
  Linear layer = linear(name, n, k);
  const std::string weight = name + ".weight";
  layer.change.rank = adapters_.rank(weight, n, k);
  if (layer.change.rank == 0 || declaring_) return layer;
  const Factors factors = adapters_.factors(weight, n, k);
  layer.change.a = pack_floats(weight + ".lora_a", factors.rank, k, factors.a);
  layer.change.b = pack_floats(weight + ".lora_b", n, factors.rank, factors.b);
  return layer;
}

// Makes room for what the changes of layers with one input share.
void Loader::widen(const std::vector<Linear>& parts) {
  int rank = 0;
  for (const Linear& part : parts) rank += part.change.rank;
  model_.config_.low_rank = std::max(model_.config_.low_rank, rank);
}

Norm Loader::norm(const std::string& name) {
  const ModelConfig& c = model_.config_;
  return {c.norm, vector(name + ".weight", c.dim, false), c.norm_bias ? vector(name + ".bias", c.dim, false) : nullptr,
          c.norm_eps};
}

Norm Loader::layer_norm(const std::string& name, float eps) {
  const int dim = model_.config_.dim;
  return {NormKind::layer, vector(name + ".weight", dim, false), vector(name + ".bias", dim, false), eps};
}

Norm Loader::head_norm(const std::string& name, int head_dim) {
  return {NormKind::rms, vector(name + ".weight", head_dim, false), nullptr, model_.config_.norm_eps};
}

// An rms norm without weights.
Norm Loader::plain_norm(int width) {
  const float* ones = declaring_ ? nullptr : upload(std::vector<float>(width, 1.0f));
  return {NormKind::rms, ones, nullptr, model_.config_.norm_eps};
}

// Of the router that scales what it reads by a vector and 1 / sqrt(dim).
Norm Loader::router_norm(const std::string& name) {
  const ModelConfig& c = model_.config_;
  const Tensor* tensor = require(name);
  if (tensor == nullptr) return {};
  check_shape(*tensor, 1, c.dim);
  if (declaring_) return {};
  std::vector<float> weights = decode(*tensor);
  for (float& weight : weights) weight /= std::sqrt(static_cast<float>(c.dim));
  for (float weight : weights)
    if (!std::isfinite(weight)) throw Error(LD_FILE, name + ": holds a value that is not finite");
  return {NormKind::rms, upload(weights), nullptr, c.norm_eps};
}

// ---- what is left ----

void Loader::refuse_missing() const {
  if (!missing_.empty())
    throw Error(LD_FILE,
                "architecture '" + model_.config_.arch + "' needs tensors that the file lacks: " + join(missing_));
}

void Loader::sort_unused() {
  const ModelConfig& c = model_.config_;
  std::vector<std::string> unknown, spare;
  std::set<std::string> reasons;
  for (const Tensor& tensor : file_.tensors()) {
    const std::string name(tensor.name);
    if (used_.count(name)) continue;
    const char* reason = nullptr;
    for (const Spare& known : kSpares)
      if (name.find(known.part) != std::string::npos) reason = known.what;
    for (int i = c.layers; i < c.layers + c.spare_layers; i++)
      if (name.rfind(block_name(i), 0) == 0) reason = kSpares[0].what;
    if (reason == nullptr) {
      unknown.push_back(name);
    } else {
      spare.push_back(name);
      reasons.insert(reason);
    }
  }
  if (!unknown.empty())
    throw Error(LD_FILE, "the file holds tensors that architecture '" + c.arch + "' does not use: " + join(unknown));
  for (const std::string& reason : reasons) model_.skipped_ += (model_.skipped_.empty() ? "" : "; ") + reason;
  if (!spare.empty()) model_.skipped_ += ": " + join(spare);
}

}  // namespace ld
