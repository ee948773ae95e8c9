// One layer: x += output(attention(qkv(norm(x)))); x += down(activation(gate(norm(x))) * up(norm(x))).
// Norms and activations belong to the input of the linear layer that follows them, biases and residual sums to its
// output, so a device can fuse them.
#include "transformer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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

LinearInput plain_input(const float* x, int width) {
  return {x, width, width, nullptr, Norm{}, Activation::none, nullptr};
}

}  // namespace

ContextShape context_shape(const ModelConfig& config, int slots, int slot_length, int rows, int threads) {
  ContextShape shape{};
  shape.threads = threads;
  shape.slots = slots;
  shape.slot_length = slot_length;
  shape.layers = config.layers;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.rows = rows;
  auto width = [&](Buffer buffer) -> int& { return shape.width[static_cast<int>(buffer)]; };
  width(Buffer::x) = config.dim;
  width(Buffer::qkv) = config.qkv_dim();
  width(Buffer::attention) = config.heads * config.head_dim;
  width(Buffer::gate) = config.gated ? config.ffn_dim : 0;
  width(Buffer::up) = config.ffn_dim;
  shape.max_k = std::max({config.dim, config.ffn_dim, config.heads * config.head_dim});
  shape.vocab = config.vocab;
  return shape;
}

bool forward(const Model& model, Context* context, const Rows& rows, const std::atomic<bool>& cancel,
             Timings& timings) {
  const Ops& ops = model.ops();
  const ModelConfig& c = model.config();
  float* x = ops.buffer(context, Buffer::x);                  // [rows, dim]
  float* qkv = ops.buffer(context, Buffer::qkv);              // [rows, qkv_dim]
  float* attention = ops.buffer(context, Buffer::attention);  // [rows, heads * head_dim]
  float* gate = ops.buffer(context, Buffer::gate);            // [rows, ffn_dim]
  float* up = ops.buffer(context, Buffer::up);                // [rows, ffn_dim]
  const int qkv_dim = c.qkv_dim();
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  Stopwatch watch;

  ops.embed(context, model.token_embedding(), rows.tokens, rows.count, false, x);
  if (c.learned_positions) ops.embed(context, model.position_embedding(), rows.positions, rows.count, true, x);
  watch.lap(timings.other);

  int index = 0;
  for (const Layer& layer : model.layers()) {
    if (cancel.load(std::memory_order_relaxed)) return false;

    LinearInput input = plain_input(x, c.dim);
    input.norm = layer.attention_norm;
    LinearOutput qkv_outputs[3];
    int n_outputs = 0, column = 0;
    for (const Linear& part : layer.qkv) {
      qkv_outputs[n_outputs++] = {part.weight, part.bias, qkv + column, qkv_dim, false};
      column += part.n;
    }
    ops.linear(context, input, rows.count, qkv_outputs, n_outputs);
    watch.lap(timings.linear);

    ops.store_kv(context, index, qkv, qkv_dim, rows.info, rows.count, model.rope());
    watch.lap(timings.other);
    ops.attention(context, index, qkv, qkv_dim, rows.info, rows.count, scale, attention);
    watch.lap(timings.attention);

    input = plain_input(attention, c.heads * c.head_dim);
    const LinearOutput attention_output{layer.attention_output.weight, layer.attention_output.bias, x, c.dim, true};
    ops.linear(context, input, rows.count, &attention_output, 1);

    input = plain_input(x, c.dim);
    input.norm = layer.ffn_norm;
    const LinearOutput ffn_outputs[2] = {{layer.up.weight, layer.up.bias, up, c.ffn_dim, false},
                                         {layer.gate.weight, layer.gate.bias, gate, c.ffn_dim, false}};
    ops.linear(context, input, rows.count, ffn_outputs, c.gated ? 2 : 1);

    input = plain_input(c.gated ? gate : up, c.ffn_dim);
    input.activation = c.activation;
    input.up = c.gated ? up : nullptr;
    const LinearOutput down{layer.down.weight, layer.down.bias, x, c.dim, true};
    ops.linear(context, input, rows.count, &down, 1);
    watch.lap(timings.linear);
    index++;
  }
  timings.forwards++;
  timings.rows += rows.count;
  return true;
}

LinearInput head_input(const Model& model, Context* context, const int32_t* pick) {
  LinearInput input = plain_input(model.ops().buffer(context, Buffer::x), model.config().dim);
  input.pick = pick;
  input.norm = model.output_norm();
  return input;
}

}  // namespace ld
