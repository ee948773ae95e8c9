// The device's propose and logits across threads, chunks and kernel rows, and its memory: what a plan says, and that a
// step allocates nothing. The rules of sampling are test_sampling.cpp's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "allocations.h"
#include "cpu/kernels.h"
#include "scored.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

// A device whose head is a random float32 matrix.
struct Engine {
  Engine(const char* isa, int threads, int rows, int dim, int vocab, TensorType type = TensorType::f32)
      : dim(dim), vocab(vocab) {
    device = ops.open({isa, 1});
    values = random_floats(static_cast<size_t>(vocab) * dim, 17, 0.3f);
    head.name = "output.weight";
    head.type = type_traits(static_cast<int>(type));
    head.n_dims = 2;
    head.dims[0] = dim;
    head.dims[1] = vocab;
    head.dims[2] = head.dims[3] = 1;
    head.data = {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)};
    weight = ops.pack(device, head, Use::multiply);
    table = ops.pack(device, head, Use::gather);
    shape.threads = threads;
    shape.slots = 2;
    shape.slot_length = 64;
    shape.layers = shape.heads = 1;
    kv = {1, dim};
    shape.kv = &kv;
    shape.rows = rows;
    shape.width[static_cast<int>(Buffer::x)] = dim;
    shape.max_k = dim;
    shape.vocab = vocab;
    shape.ropes = 1;
    context = ops.create(device, shape);
  }
  ~Engine() {
    ops.destroy(context);
    ops.release(table);
    ops.release(weight);
    ops.close(device);
  }
  OutputLayer output(const float* bias = nullptr) const { return {weight, bias, 0, nullptr, 1}; }
  const Ops& ops = cpu_ops();
  int dim, vocab;
  std::vector<float> values;
  Tensor head{};
  KvShape kv{};
  ContextShape shape{};
  Device* device;
  Weight *weight, *table;
  Context* context;
};

struct Call {
  Call(const Engine& engine, int rows, unsigned seed) : x(random_floats(static_cast<size_t>(rows) * engine.dim, seed)) {
    norm_weight.assign(engine.dim, 1);
    for (int r = 0; r < rows; ++r) pick.push_back((r * 7 + 1) % rows);
    input = {x.data(),         engine.dim, engine.dim, pick.data(), {NormKind::rms, norm_weight.data(), nullptr, 1e-5f},
             Activation::none, nullptr};
    results.resize(rows);
    sampling.resize(rows, greedy());
    for (int r = 0; r < rows; ++r) {
      Sampling& s = sampling[r];
      s.temperature = r % 3 * 0.5f;
      s.top_p = r % 2 ? 0.9f : 1;
      s.top_k = r % 5 ? 0 : 50;
      s.scores_sampled = r % 4 == 0;
      s.alternatives = r % 3;
      s.seed = 5;
      score.push_back(results[r].row(r, s));
    }
  }
  std::vector<float> x, norm_weight;
  std::vector<int32_t> pick;
  LinearInput input;
  std::vector<Result> results;
  std::vector<Sampling> sampling;
  std::vector<ScoreRow> score;
};

}  // namespace

TEST(proposals_do_not_depend_on_threads_or_chunks) {
  const int rows = 83, dim = 64, vocab = 1037;
  for (const KernelRow* kernels : supported_rows()) {
    std::vector<Result> expected;
    std::vector<float> bias = random_floats(vocab, 4);
    for (int threads : {1, 2, 3, 4}) {
      Engine engine(kernels->name, threads, rows, dim, vocab);
      CHECK_EQ(engine.ops.threads(engine.context), threads);
      Call call(engine, rows, 2);
      CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.output(bias.data()), call.score.data(), rows), -1);
      if (threads == 1) expected = call.results;
      CHECK(call.results == expected);
    }
    // One row at a time, in a context of few rows.
    Engine engine(kernels->name, 2, 3, dim, vocab);
    Call call(engine, rows, 2);
    for (int r = 0; r < rows; ++r) {
      LinearInput input = call.input;
      input.pick += r;
      CHECK_EQ(engine.ops.propose(engine.context, input, engine.output(bias.data()), &call.score[r], 1), -1);
    }
    CHECK(call.results == expected);
  }
}

TEST(logits_match_double_arithmetic_and_the_proposals) {
  const int rows = 70, dim = 48, vocab = 515;
  for (const KernelRow* kernels : supported_rows()) {
    Engine engine(kernels->name, 2, rows, dim, vocab);
    Call call(engine, rows, 6);
    const auto bias = random_floats(vocab, 4);
    std::vector<float> logits(static_cast<size_t>(rows) * vocab + 1, 77);
    CHECK_EQ(engine.ops.logits(engine.context, call.input, rows, engine.output(bias.data()), logits.data()), -1);
    CHECK_EQ(logits.back(), 77.0f);
    CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.output(bias.data()), call.score.data(), rows), -1);
    for (int r = 0; r < rows; ++r) {
      const float* x = &call.x[static_cast<size_t>(call.pick[r]) * dim];
      double square = 0;
      for (int i = 0; i < dim; ++i) square += double{x[i]} * x[i] / dim;
      for (int v = 0; v < vocab; ++v) {
        double sum = bias[v];
        for (int i = 0; i < dim; ++i) sum += x[i] / std::sqrt(square + 1e-5) * engine.values[v * dim + i];
        CHECK(std::fabs(logits[static_cast<size_t>(r) * vocab + v] - sum) <= 5e-6);
      }
      Result single;
      const std::vector<float> own(logits.begin() + static_cast<size_t>(r) * vocab,
                                   logits.begin() + static_cast<size_t>(r + 1) * vocab);
      REQUIRE(score(*kernels->vector, own, call.sampling[r], r, &single));
      CHECK(single == call.results[r]);
    }
  }
}

TEST(guided_rows_are_scored_with_their_companions) {
  const int rows = 83, dim = 32, vocab = 515;
  const auto bias = random_floats(vocab, 4);
  for (const KernelRow* kernels : supported_rows()) {
    for (int context_rows : {rows, 3, 2}) {  // chunks and slabs of many sizes, also odd ones
      Engine engine(kernels->name, 2, context_rows, dim, vocab);
      Call call(engine, rows, 6);
      std::vector<float> plain(static_cast<size_t>(rows) * vocab), raw(plain.size());
      engine.ops.logits(engine.context, call.input, rows, engine.output(bias.data()), plain.data());
      std::vector<bool> companion(rows);
      for (int r = 0; r < rows; ++r) {
        if (r > 0 && call.sampling[r - 1].guidance != 0) {
          companion[r] = true;
          call.score[r] = {r, &call.sampling[r], nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
        } else if ((r < 20 || r % 3 == 0) && r + 1 < rows) {
          call.sampling[r].guidance = r % 2 ? 1.5f : -0.5f;
        }
        call.score[r].logits = &raw[static_cast<size_t>(r) * vocab];
      }
      CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.output(bias.data()), call.score.data(), rows), -1);
      CHECK(raw == plain);
      for (int r = 0; r < rows; ++r) {
        if (companion[r]) continue;
        std::vector<float> own(plain.begin() + r * vocab, plain.begin() + (r + 1) * vocab);
        const float g = call.sampling[r].guidance;
        for (int v = 0; g != 0 && v < vocab; ++v) {
          const float u = plain[(r + 1) * vocab + v];
          own[v] = u + (g + 1) * (own[v] - u);
        }
        Result single;
        REQUIRE(score(*kernels->vector, own, call.sampling[r], r, &single));
        CHECK(single == call.results[r]);
      }
    }
  }
}

TEST(the_first_damaged_row_is_named) {
  Engine engine(nullptr, 3, 90, 32, 300);
  Call call(engine, 90, 1);
  for (int r : {71, 40, 88}) call.x[static_cast<size_t>(call.pick[r]) * 32 + 5] = NAN;
  CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.output(), call.score.data(), 90), 40);
  std::vector<float> logits(90 * 300);
  CHECK_EQ(engine.ops.logits(engine.context, call.input, 90, engine.output(), logits.data()), 40);
}

TEST(embedding_looks_rows_up) {
  Engine engine(nullptr, 2, 40, 32, 300);
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(i * 37 % 300);
  std::vector<float> out(40 * 32);
  engine.ops.embed(engine.context, engine.table, ids.data(), 40, false, 1, out.data());
  for (int i = 0; i < 40 * 32; ++i) CHECK_EQ(out[i], engine.values[ids[i / 32] * 32 + i % 32]);
  engine.ops.embed(engine.context, engine.table, ids.data(), 40, true, 1, out.data());
  for (int i = 0; i < 40 * 32; ++i) CHECK_EQ(out[i], 2 * engine.values[ids[i / 32] * 32 + i % 32]);
  CHECK_EQ(engine.ops.weight_bytes(engine.table), 0u);
  CHECK(engine.ops.weight_bytes(engine.weight) >= engine.values.size() * sizeof(float));
}

TEST(devices_and_contexts) {
  const Ops& ops = cpu_ops();
  CHECK_THROWS(ops.open({"avx9", 1}), "isa 'avx9' cannot be used here; known: ");
  CHECK_THROWS(ops.open({"", 1}), "scalar");
  Engine engine("scalar", 2, 8, 32, 300);
  CHECK_EQ(std::string(ops.isa(engine.device)), "scalar");
  CHECK_EQ(reinterpret_cast<uintptr_t>(ops.buffer(engine.context, Buffer::x)) % 64, 0u);
  // The plan grows with what is asked for, and a plan that no memory can hold is an error.
  ContextShape larger = engine.shape;
  larger.slot_length *= 2;
  const size_t state = size_t{2} * 64 * 32 * 2 * sizeof(float);  // slots, positions, head_dim, keys and values
  CHECK(ops.plan(engine.device, larger) >= ops.plan(engine.device, engine.shape) + state);
  KvShape wide{1 << 30, 32};
  larger.kv = &wide;
  larger.slots = larger.slot_length = larger.heads = 1 << 30;
  CHECK_THROWS(ops.plan(engine.device, larger), "fewer slots");
  wide.kv_heads = 1 << 14;
  larger.slots = larger.heads = 1 << 7;
  CHECK_THROWS(ops.create(engine.device, larger), "ask for fewer");
}

TEST(a_step_allocates_nothing) {
  const int rows = 40, dim = 32;
  Engine engine(nullptr, 3, rows, dim, 3000);
  Call call(engine, rows, 2);
  std::vector<float> logits(rows * 3000), qkv(rows * 3 * dim, 0.5f), out(rows * dim);
  std::vector<int32_t> ids(rows, 3);
  std::vector<RowInfo> info;
  for (int r = 0; r < rows; ++r) info.push_back({r % 2, r / 2, 0, r / 2 + 1, r / 2});
  std::sort(info.begin(), info.end(),
            [](auto& a, auto& b) { return std::tie(a.slot, a.place) < std::tie(b.slot, b.place); });
  const std::vector<float> frequencies(dim / 2, 0.1f);
  const LinearOutput output{engine.weight, nullptr, logits.data(), 3000, false};
  const int64_t before = allocations;
  const Ops& ops = engine.ops;
  ops.embed(engine.context, engine.table, ids.data(), rows, false, 1, out.data());
  ops.linear(engine.context, call.input, rows, &output, 1);
  const AttentionLayer layer{0, Norm{}, Norm{}, Norm{}, {Rope::half, dim, frequencies.data(), 0, 1, 0, 1}, 0.2f};
  ops.store_kv(engine.context, layer, qkv.data(), 3 * dim, info.data(), rows);
  ops.attention(engine.context, layer, qkv.data(), 3 * dim, info.data(), rows, out.data());
  ops.apply(engine.context, call.input, rows, true, out.data());
  CHECK_EQ(ops.propose(engine.context, call.input, engine.output(), call.score.data(), rows), -1);
  ops.logits(engine.context, call.input, rows, engine.output(), logits.data());
  CHECK_EQ(allocations - before, 0);
}
