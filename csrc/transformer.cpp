// One layer: x += output(attention(qkv(norm(x)))); x += down(activation(gate(norm(x))) * up(norm(x))) and, where the
// layer has experts, the sum of those a row is routed to. Norms and activations belong to the input of the linear layer
// that follows them, biases and residual sums to its output, so a device can fuse them; a norm after the sum is a step
// of its own.
#include "transformer.h"

#include <algorithm>
#include <chrono>

namespace ld {
namespace {

// Adds the seconds since the last lap to a counter.
class Stopwatch {
 public:
  void lap(double& seconds) {
    const auto now = Clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

LinearInput normed_input(const float* x, int width, const Norm& norm) {
  return {x, width, width, nullptr, norm, Activation::none, nullptr};
}

// One forward pass of some rows; each step reads and writes the context's buffers.
class Pass {
 public:
  Pass(const Model& model, Context* context, const Rows& rows)
      : model_(model), ops_(model.ops()), config_(model.config()), context_(context), rows_(rows) {}

  void embed() {
    float* x = buffer(Buffer::x);
    ops_.embed(context_, model_.token_embedding(), rows_.tokens, rows_.count, false, x);
    if (model_.position_embedding() != nullptr)
      ops_.embed(context_, model_.position_embedding(), rows_.positions, rows_.count, true, x);
    if (model_.type_embedding() != nullptr)
      ops_.embed(context_, model_.type_embedding(), nullptr, rows_.count, true, x);
    norm_in_place(model_.embedding_norm());
  }

  void project(const Layer& layer) {
    side_by_side(normed_input(buffer(Buffer::x), config_.dim, layer.attention_join.before), layer.qkv,
                 buffer(Buffer::qkv), config_.qkv_dim());
  }

  void store(const Layer& layer) {
    ops_.store_kv(context_, layer.attention, buffer(Buffer::qkv), config_.qkv_dim(), info(layer), rows_.count);
  }

  void attend(const Layer& layer) {
    ops_.attention(context_, layer.attention, buffer(Buffer::qkv), config_.qkv_dim(), info(layer), rows_.count,
                   buffer(Buffer::attention));
  }

  void finish_attention(const Layer& layer) {
    add_to_x(normed_input(buffer(Buffer::attention), config_.heads * config_.head_dim, Norm{}), layer.attention_output);
    norm_in_place(layer.attention_join.after);
  }

  // Both parts read x before either adds to it.
  void feed_forward(const Layer& layer) {
    const LinearInput input = normed_input(buffer(Buffer::x), config_.dim, layer.ffn_join.before);
    float *ffn = buffer(Buffer::ffn), *branch = buffer(Buffer::branch);
    const int width = layer.ffn.width, stride = layer.ffn.gated ? 2 * width : width;
    if (layer.experts.count > 0) ops_.experts(context_, input, rows_.count, layer.experts, branch);
    if (width > 0) {
      side_by_side(input, layer.ffn.in, ffn, stride);
      add_to_x({ffn, stride, width, nullptr, Norm{}, layer.ffn.activation, layer.ffn.gated ? ffn + width : nullptr},
               layer.ffn.down);
    }
    if (layer.experts.count > 0)
      ops_.apply(context_, normed_input(branch, config_.dim, Norm{}), rows_.count, true, buffer(Buffer::x));
    norm_in_place(layer.ffn_join.after);
  }

  void norm_in_place(const Norm& norm) {
    if (norm.kind == NormKind::none) return;
    float* x = buffer(Buffer::x);
    ops_.apply(context_, normed_input(x, config_.dim, norm), rows_.count, false, x);
  }

 private:
  float* buffer(Buffer which) const { return ops_.buffer(context_, which); }
  const RowInfo* info(const Layer& layer) const { return layer.windowed ? rows_.windowed : rows_.info; }

  // y holds the outputs of all parts, one after the other.
  void side_by_side(const LinearInput& input, const std::vector<Linear>& parts, float* y, int stride) {
    multiply(input, parts.data(), static_cast<int>(parts.size()), y, stride, false);
  }

  void add_to_x(const LinearInput& input, const Linear& linear) {
    multiply(input, &linear, 1, buffer(Buffer::x), config_.dim, true);
  }

  // What adapters add goes by the narrow side: a x, all parts at once with W x, then y += b (a x) part by part.
  void multiply(const LinearInput& input, const Linear* parts, int count, float* y, int stride, bool add) {
    constexpr int kMostParts = 3;
    LinearOutput outputs[2 * kMostParts];
    float* narrow = buffer(Buffer::low_rank);
    int n_outputs = 0, column = 0;
    for (const Linear* part = parts; part < parts + count; part++) {
      outputs[n_outputs++] = {part->weight, part->bias, y + column, stride, add};
      column += part->n;
    }
    for (const Linear* part = parts; part < parts + count; part++) {
      if (part->change.rank == 0) continue;
      outputs[n_outputs++] = {part->change.a, nullptr, narrow, config_.low_rank, false};
      narrow += part->change.rank;
    }
    ops_.linear(context_, input, rows_.count, outputs, n_outputs);

    narrow = buffer(Buffer::low_rank);
    for (const Linear* part = parts; part < parts + count; y += part++->n) {
      const LowRank& change = part->change;
      if (change.rank == 0) continue;
      const LinearOutput output{change.b, nullptr, y, stride, true};
      ops_.linear(context_, {narrow, config_.low_rank, change.rank, nullptr, Norm{}, Activation::none, nullptr},
                  rows_.count, &output, 1);
      narrow += change.rank;
    }
  }

  const Model& model_;
  const Ops& ops_;
  const ModelConfig& config_;
  Context* context_;
  const Rows& rows_;
};

}  // namespace

ContextShape context_shape(const ModelConfig& config, int slots, int slot_length, int rows, int score_rows) {
  const bool has_lengths = config.lengths > 0;
  ContextShape shape{};
  shape.slots = slots;
  shape.slot_length = slot_length;
  shape.layers = config.layers + has_lengths;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.rows = rows;
  shape.score_rows = score_rows;
  const bool has_ffn = has_lengths || !config.has_experts(0);
  const int ffn_dim = std::max(has_ffn ? config.ffn_dim : 0, config.moe.shared_dim);
  auto width = [&](Buffer buffer) -> int& { return shape.width[static_cast<int>(buffer)]; };
  width(Buffer::x) = config.dim;
  width(Buffer::qkv) = config.qkv_dim();
  width(Buffer::attention) = config.heads * config.head_dim;
  width(Buffer::ffn) = config.gated ? 2 * ffn_dim : ffn_dim;
  width(Buffer::branch) = config.moe.experts > 0 ? config.dim : 0;
  width(Buffer::head) = config.head == HeadKind::mlm ? config.dim : 0;
  width(Buffer::low_rank) = config.low_rank;
  shape.max_k = std::max({config.dim, ffn_dim, config.heads * config.head_dim, config.moe.expert_dim});
  shape.vocab = std::max(config.vocab, config.lengths);
  shape.ropes = config.rope.kind == Rope::none ? 0 : config.window > 0 ? 2 : 1;
  shape.experts = config.moe.experts;
  shape.experts_used = config.moe.rule.used;
  shape.expert_dim = config.moe.expert_dim;
  return shape;
}

bool forward(const Model& model, Context* context, const Rows& rows, const std::atomic<bool>& cancel,
             Timings& timings) {
  Pass pass(model, context, rows);
  Stopwatch watch;
  pass.embed();
  watch.lap(timings.other);
  for (const Layer& layer : model.layers()) {
    if (cancel.load(std::memory_order_relaxed)) return false;
    pass.project(layer);
    watch.lap(timings.linear);
    pass.store(layer);
    watch.lap(timings.other);
    pass.attend(layer);
    watch.lap(timings.attention);
    pass.finish_attention(layer);
    pass.feed_forward(layer);
    watch.lap(timings.linear);
  }
  timings.forwards++;
  timings.rows += rows.count;
  return true;
}

LinearInput head_input(const Model& model, Context* context, const int32_t* pick, int count) {
  const Ops& ops = model.ops();
  const int dim = model.config().dim;
  const OutputHead& head = model.head();
  LinearInput input = normed_input(ops.buffer(context, Buffer::x), dim, head.norm);
  input.pick = pick;
  if (head.dense.weight == nullptr) return input;
  float* made = ops.buffer(context, Buffer::head);
  const LinearOutput dense{head.dense.weight, head.dense.bias, made, dim, false};
  ops.linear(context, input, count, &dense, 1);
  input = normed_input(made, dim, head.dense_norm);
  input.activation = model.config().activation;
  return input;
}

LinearInput length_input(const Model& model, Context* context, const Rows& rows) {
  const Ops& ops = model.ops();
  const ModelConfig& config = model.config();
  const LengthHead& head = model.length_head();
  Pass pass(model, context, rows);
  pass.norm_in_place(model.head().norm);
  pass.project(head.layer);
  pass.store(head.layer);
  pass.attend(head.layer);
  pass.finish_attention(head.layer);
  pass.feed_forward(head.layer);
  float *mean = ops.buffer(context, Buffer::attention), *made = ops.buffer(context, Buffer::ffn);
  ops.mean(context, ops.buffer(context, Buffer::x), config.dim, rows.count, mean);
  const LinearOutput dense{head.dense.weight, head.dense.bias, made, config.ffn_dim, false};
  ops.linear(context, normed_input(mean, config.dim, Norm{}), 1, &dense, 1);
  LinearInput input = normed_input(made, config.ffn_dim, Norm{});
  input.activation = Activation::tanh;
  return input;
}

}  // namespace ld
