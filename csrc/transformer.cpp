// One layer: x += output(attention(qkv(norm(x)))); x += down(activation(gate(norm(x))) * up(norm(x))) and, where the
// layer has experts, the sum of those a row is routed to. Norms and activations belong to the input of the linear layer
// that follows them, biases and residual sums to its output, so a device can fuse them; norms of what is added and norms
// after the sum are steps of their own.
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

// A step that is given up unless it is ended.
struct Step {
  const Ops& ops;
  Context* context;
  bool ended = false;
  bool end() {
    ended = true;
    return ops.end_step(context, true);
  }
  ~Step() {
    if (!ended) ops.end_step(context, false);
  }
};

LinearInput normed_input(const float* x, int width, const Norm& norm) {
  return {x, width, width, nullptr, norm, Activation::none, nullptr};
}

// One forward pass of some rows; each step reads and writes the context's buffers.
class Pass {
 public:
  Pass(const Model& model, const Part& part, Context* context, const Rows& rows)
      : model_(model),
        ops_(*part.ops),
        config_(model.config()),
        first_layer_(part.first),
        context_(context),
        rows_(rows) {}

  void embed() {
    float* x = buffer(Buffer::x);
    ops_.embed(context_, model_.token_embedding(), rows_.tokens, rows_.count, false, config_.embedding_scale, x);
    if (model_.position_embedding() != nullptr)
      ops_.embed(context_, model_.position_embedding(), rows_.positions, rows_.count, true, 1, x);
    if (model_.type_embedding() != nullptr)
      ops_.embed(context_, model_.type_embedding(), nullptr, rows_.count, true, 1, x);
    norm_in_place(model_.embedding_norm());
    for_runs([&](int row) { return rows_.feedback[row] >= 0; },
             [&](int first, int count, bool fed) {
               if (fed) feed_back(first, count);
             });
    for_runs([&](int row) { return rows_.canvas[row]; },
             [&](int first, int count, int canvas) {
               if (canvas) norm_rows(model_.canvas_norm(), x + row_start(first), count);
             });
  }

  // Rows that the processor computed so far.
  void receive(const float* x) {
    ops_.receive(context_, x, static_cast<size_t>(rows_.count) * config_.dim, buffer(Buffer::x));
  }

  void project(const Layer& layer) {
    side_by_side(normed_input(buffer(Buffer::x), config_.dim, layer.attention_join.before), layer.qkv,
                 buffer(Buffer::qkv), qkv_dim(layer));
  }

  void store(const Layer& layer) {
    ops_.store_kv(context_, placed(layer), buffer(Buffer::qkv), qkv_dim(layer), info(layer), rows_.count);
  }

  void attend(const Layer& layer) {
    ops_.attention(context_, placed(layer), buffer(Buffer::qkv), qkv_dim(layer), info(layer), rows_.count,
                   buffer(Buffer::attention));
  }

  void finish_attention(const Layer& layer) {
    const Norm& inner = layer.attention_join.inner;
    float* to = inner.kind == NormKind::none ? buffer(Buffer::x) : buffer(Buffer::branch);
    const LinearInput input = normed_input(buffer(Buffer::attention), config_.q_dim(layer.attention.index), Norm{});
    multiply(input, rows_.count, &layer.attention_output, 1, to, config_.dim, inner.kind == NormKind::none);
    if (inner.kind != NormKind::none) add_to_x(inner);
    norm_in_place(layer.attention_join.after);
  }

  // All parts read x before any adds to it.
  void feed_forward(const Layer& layer) {
    float *x = buffer(Buffer::x), *branch = buffer(Buffer::branch), *side = buffer(Buffer::side);
    const bool experts = layer.experts.count > 0, gathers = layer.ffn_join.inner.kind != NormKind::none;
    if (experts) {
      const LinearInput input = normed_input(x, config_.dim, layer.experts_before);
      ops_.experts(context_, input, rows_.count, layer.experts, branch);
      norm_rows(layer.experts_inner, branch, rows_.count);
    }
    if (layer.ffn.width > 0) {
      float* to = !gathers ? x : experts ? side : branch;
      run_ffn(layer.ffn, normed_input(x, config_.dim, layer.ffn_join.before), rows_.count, to, !gathers);
      if (to == branch) norm_rows(layer.ffn_inner, branch, rows_.count);
      if (to == side) ops_.apply(context_, normed_input(side, config_.dim, layer.ffn_inner), rows_.count, true, branch);
    }
    if (experts || gathers) add_to_x(layer.ffn_join.inner);
    norm_in_place(layer.ffn_join.after);
  }

  void scale(const Layer& layer) {
    for_runs([&](int row) { return rows_.canvas[row] ? layer.canvas_scale : layer.prompt_scale; },
             [&](int first, int count, float factor) {
               if (factor != 1) ops_.scale(context_, buffer(Buffer::x) + row_start(first), count, config_.dim, factor);
             });
  }

  void norm_in_place(const Norm& norm) { norm_rows(norm, buffer(Buffer::x), rows_.count); }

 private:
  float* buffer(Buffer which) const { return ops_.buffer(context_, which); }
  const RowInfo* info(const Layer& layer) const { return layer.windowed ? rows_.windowed : rows_.info; }
  // The layer as its part's context counts.
  AttentionLayer placed(const Layer& layer) const {
    AttentionLayer attention = layer.attention;
    attention.index -= first_layer_;
    return attention;
  }
  int qkv_dim(const Layer& layer) const { return config_.qkv_dim(layer.attention.index); }
  ptrdiff_t row_start(int row) const { return static_cast<ptrdiff_t>(row) * config_.dim; }

  // Calls use(first, count, value) for each stretch of rows of which kind(row) gives one value.
  template <class Kind, class Use>
  void for_runs(const Kind& kind, const Use& use) const {
    for (int first = 0, last; first < rows_.count; first = last) {
      const auto value = kind(first);
      for (last = first + 1; last < rows_.count && kind(last) == value;) last++;
      use(first, last - first, value);
    }
  }

  void norm_rows(const Norm& norm, float* rows, int count) {
    if (norm.kind != NormKind::none) ops_.apply(context_, normed_input(rows, config_.dim, norm), count, false, rows);
  }

  // x += norm(branch)
  void add_to_x(const Norm& norm) {
    const LinearInput branch = normed_input(buffer(Buffer::branch), config_.dim, norm);
    ops_.apply(context_, branch, rows_.count, true, buffer(Buffer::x));
  }

  // Rows [first, first + count) are told what was expected of them.
  void feed_back(int first, int count) {
    LinearInput expected = normed_input(buffer(Buffer::feedback), config_.dim, model_.feedback().norm);
    expected.pick = rows_.feedback + first;
    run_ffn(model_.feedback().ffn, expected, count, buffer(Buffer::x) + row_start(first), true);
  }

  void run_ffn(const FeedForward& layer, const LinearInput& input, int rows, float* y, bool add) {
    float* ffn = buffer(Buffer::ffn);
    const int width = layer.width, stride = layer.gated ? 2 * width : width;
    multiply(input, rows, layer.in.data(), static_cast<int>(layer.in.size()), ffn, stride, false);
    const LinearInput made{ffn, stride, width, nullptr, Norm{}, layer.activation, layer.gated ? ffn + width : nullptr};
    multiply(made, rows, &layer.down, 1, y, config_.dim, add);
  }

  // y holds the outputs of all parts, one after the other.
  void side_by_side(const LinearInput& input, const std::vector<Linear>& parts, float* y, int stride) {
    multiply(input, rows_.count, parts.data(), static_cast<int>(parts.size()), y, stride, false);
  }

  // What adapters add goes by the narrow side: a x, all parts at once with W x, then y += b (a x) part by part.
  void multiply(const LinearInput& input, int rows, const Linear* parts, int count, float* y, int stride, bool add) {
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
    ops_.linear(context_, input, rows, outputs, n_outputs);

    narrow = buffer(Buffer::low_rank);
    for (const Linear* part = parts; part < parts + count; y += part++->n) {
      const LowRank& change = part->change;
      if (change.rank == 0) continue;
      const LinearOutput output{change.b, nullptr, y, stride, true};
      ops_.linear(context_, {narrow, config_.low_rank, change.rank, nullptr, Norm{}, Activation::none, nullptr}, rows,
                  &output, 1);
      narrow += change.rank;
    }
  }

  const Model& model_;
  const Ops& ops_;
  const ModelConfig& config_;
  int first_layer_;
  Context* context_;
  const Rows& rows_;
};

}  // namespace

ContextShape context_shape(const Model& model, int slots, int slot_length, int rows, int score_rows) {
  const ModelConfig& config = model.config();
  const bool has_lengths = config.lengths > 0;
  ContextShape shape{};
  shape.slots = slots;
  shape.slot_length = slot_length;
  shape.layers = config.layers + has_lengths;
  shape.heads = config.heads;
  shape.kv = config.kv.data();
  shape.rows = rows;
  shape.score_rows = score_rows;
  const bool sandwich = config.norm_order == NormOrder::sandwich, experts = config.moe.experts > 0;
  const bool has_ffn = has_lengths || config.has_dense(0);
  const int ffn_dim = std::max(has_ffn ? config.ffn_dim : 0, config.moe.shared_dim);
  auto width = [&](Buffer buffer) -> int& { return shape.width[static_cast<int>(buffer)]; };
  width(Buffer::x) = config.dim;
  for (int i = 0; i < config.layers; i++) {
    width(Buffer::qkv) = std::max(width(Buffer::qkv), config.qkv_dim(i));
    width(Buffer::attention) = std::max(width(Buffer::attention), config.q_dim(i));
  }
  width(Buffer::ffn) = config.gated ? 2 * ffn_dim : ffn_dim;
  width(Buffer::branch) = experts || sandwich ? config.dim : 0;
  width(Buffer::side) = experts && sandwich ? config.dim : 0;
  width(Buffer::head) = config.head == HeadKind::mlm ? config.dim : 0;
  width(Buffer::low_rank) = config.low_rank;
  width(Buffer::feedback) = model.feedback().ffn.width > 0 ? config.dim : 0;
  shape.max_k = std::max({config.dim, ffn_dim, width(Buffer::attention), config.moe.expert_dim});
  shape.vocab = std::max(config.vocab, config.lengths);
  shape.ropes = config.rope.kind == Rope::none ? 0 : config.window > 0 ? 2 : 1;
  shape.experts = config.moe.experts;
  shape.experts_used = config.moe.rule.used;
  shape.expert_dim = config.moe.expert_dim;
  return shape;
}

ContextShape part_shape(ContextShape shape, const Part& part, bool head) {
  shape.layers = head ? shape.layers - part.first : part.last - part.first;
  shape.kv += part.first;
  if (head) return shape;
  shape.score_rows = shape.vocab = shape.width[static_cast<int>(Buffer::head)] = 0;
  return shape;
}

bool forward(const Model& model, std::span<Context* const> contexts, const Rows& rows, const std::atomic<bool>& cancel,
             Timings& timings) {
  Stopwatch watch;
  for (size_t i = 0; i < contexts.size(); i++) {
    const Part& part = model.parts()[i];
    Pass pass(model, part, contexts[i], rows);
    if (i > 0) pass.receive(model.parts()[i - 1].ops->buffer(contexts[i - 1], Buffer::x));
    if (cancel.load(std::memory_order_relaxed)) return false;
    bool done = part.ops->begin_step(contexts[i], rows);
    watch.lap(done ? timings.linear : timings.other);
    while (!done) {
      Step step{*part.ops, contexts[i]};
      if (i == 0) pass.embed();
      watch.lap(timings.other);
      for (int index = part.first; index < part.last; index++) {
        const Layer& layer = model.layers()[index];
        if (cancel.load(std::memory_order_relaxed)) return false;
        pass.project(layer);
        watch.lap(timings.linear);
        pass.store(layer);
        watch.lap(timings.other);
        pass.attend(layer);
        watch.lap(timings.attention);
        pass.finish_attention(layer);
        pass.feed_forward(layer);
        pass.scale(layer);
        watch.lap(timings.linear);
      }
      done = step.end();
    }
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
  Pass pass(model, model.parts().back(), context, rows);
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
