// Tokens and scores from logits: the rules of sampling.h against a plain double-precision statement of them, random
// numbers against published vectors, and the device's propose and logits across threads, chunks and kernel rows.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/philox.h"
#include "cpu/sampling.h"
#include "test.h"

namespace {
std::atomic<int64_t> allocations{0};
}

// Every allocation of this program is counted: a step must make none. Not inline: GCC would take free() for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align) {
  ++allocations;
  const size_t unit = static_cast<size_t>(align);
  if (void* memory = aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return malloc(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes, std::align_val_t align, const std::nothrow_t&) noexcept {
  ++allocations;
  const size_t unit = static_cast<size_t>(align);
  return aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { free(memory); }

using namespace ld;

namespace {

std::vector<float> random_floats(size_t n, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Result {
  int32_t token = -7;
  float probability = -7, margin = -7, entropy = -7;
  std::vector<int32_t> alternative_token;
  std::vector<float> alternative_probability;
  bool operator==(const Result&) const = default;

  ScoreRow row(int index, int position, const Sampling& sampling) {
    alternative_token.assign(sampling.alternatives, -7);
    alternative_probability.assign(sampling.alternatives, -7);
    return {index,
            position,
            &sampling,
            &token,
            &probability,
            &margin,
            &entropy,
            alternative_token.data(),
            alternative_probability.data()};
  }
};

bool score(const VectorKernels& kernels, const std::vector<float>& logits, const Sampling& sampling, int position,
           Result* result) {
  const int vocab = static_cast<int>(logits.size()), blocks = logit_blocks(vocab);
  std::vector<float> x(blocks * kLogitBlock, NAN), e(blocks * kLogitBlock), block_max(blocks), block_sum(blocks);
  std::copy(logits.begin(), logits.end(), x.begin());
  const ScoreRow row = result->row(0, position, sampling);
  return score_row(kernels, x.data(), vocab, row, {e.data(), block_max.data(), block_sum.data()});
}

// The distribution by the rules, sorting everything: [vocab] probabilities.
std::vector<double> reference_distribution(const std::vector<float>& logits, const Sampling& s, bool sampled) {
  const int n = static_cast<int>(logits.size());
  std::vector<bool> gone(n, false);
  for (int i = 0; i < s.n_forbidden; ++i) gone[s.forbidden[i]] = true;
  const double temperature = sampled && s.temperature > 0 ? s.temperature : 1;
  double max = -INFINITY, sum = 0;
  for (int i = 0; i < n; ++i) max = gone[i] ? max : std::max(max, double{logits[i]});
  std::vector<double> p(n);
  for (int i = 0; i < n; ++i) sum += p[i] = gone[i] ? 0 : std::exp((logits[i] - max) / temperature);
  for (double& value : p) value /= sum;
  if (!sampled) return p;
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
  if (s.top_k > 0 && s.top_k < n) {
    for (int i = s.top_k; i < n; ++i) p[order[i]] = 0;
  }
  sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  if (s.top_p > 0 && s.top_p < 1) {
    double before = 0;
    for (int i : order) {
      const double own = p[i];
      if (before > s.top_p) p[i] = 0;
      before += own;
    }
    sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
  }
  return p;
}

const VectorKernels& best() {
  int count;
  const KernelRow* row = kernel_rows(&count);
  while (!row->supported()) ++row;
  return *row->vector;
}

std::vector<const KernelRow*> supported_rows() {
  std::vector<const KernelRow*> rows;
  int count;
  const KernelRow* all = kernel_rows(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i].supported()) rows.push_back(&all[i]);
  }
  return rows;
}

Sampling greedy() {
  Sampling s{};
  s.top_p = 1;
  return s;
}

}  // namespace

TEST(philox_gives_its_published_vectors) {
  using C = PhiloxCounter;
  CHECK((philox({0, 0, 0, 0}, {0, 0}) == C{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == C{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         C{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  CHECK(philox_uniform(1, 2, 3) != philox_uniform(1, 3, 2));
  CHECK(philox_uniform(1, 2, 3) != philox_uniform(uint64_t{1} << 32, 2, 3));
  for (int i = 0; i < 1000; ++i) CHECK(philox_uniform(5, i, -i) >= 0 && philox_uniform(5, i, -i) < 1);
}

TEST(scores_match_the_rules_stated_plainly) {
  const int32_t forbidden[] = {0, 3, 3, 200};
  double worst = 0;
  for (const KernelRow* kernels : supported_rows()) {
    for (int vocab : {2, 5, 17, 255, 256, 257, 1000, 5000}) {
      for (int variant = 0; variant < 96; ++variant) {
        const float scale = variant % 2 ? 3.0f : 0.3f;  // peaked and nearly flat
        const auto logits = random_floats(vocab, vocab * 31 + variant, scale);
        Sampling s = greedy();
        s.temperature = std::array{0.0f, 1.0f, 0.6f, 1.7f}[variant / 2 % 4];
        s.top_k = std::array{0, 1, 40}[variant / 8 % 3];
        s.top_p = std::array{1.0f, 0.9f, 0.3f, 0.0f}[variant / 24];
        s.scores_sampled = variant % 3 == 0;
        s.alternatives = variant % 5 * 16;
        s.seed = 99;
        s.forbidden = forbidden;
        s.n_forbidden = vocab > 200 ? 4 : vocab > 4 ? 2 : 1;
        Result r;
        REQUIRE(score(*kernels->vector, logits, s, variant, &r));

        const auto sampled = reference_distribution(logits, s, true);
        const auto p = reference_distribution(logits, s, s.scores_sampled);
        std::vector<int> order(vocab);
        std::iota(order.begin(), order.end(), 0);
        const auto raw = reference_distribution(logits, s, false);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return raw[a] > raw[b]; });
        double entropy = 0;
        for (double value : p) entropy -= value > 0 ? value * std::log(value) : 0;
        if (s.temperature == 0) {
          CHECK_EQ(r.token, order[0]);
        } else {  // by the inverse distribution function, at the position's random number
          const double u = philox_uniform(s.seed, variant, s.step);
          double before = 0;
          for (int i = 0; i < r.token; ++i) before += sampled[i];
          CHECK(sampled[r.token] > 0);
          CHECK(before <= u + 1e-5 && u <= before + sampled[r.token] + 1e-5);
        }
        const auto near = [&](double got, double expected) {
          worst = std::max(worst, std::fabs(got - expected));
          return std::fabs(got - expected) <= 2e-6 * (1 + std::fabs(expected));
        };
        CHECK(near(r.probability, p[r.token]));
        CHECK(near(r.margin, p[order[0]] - p[order[1]]));
        CHECK(near(r.entropy, entropy));
        const int present = static_cast<int>(std::count_if(raw.begin(), raw.end(), [](double v) { return v > 0; }));
        for (int i = 0; i < s.alternatives; ++i) {
          CHECK_EQ(r.alternative_token[i], i < present ? order[i] : -1);
          CHECK(near(r.alternative_probability[i], i < present ? p[order[i]] : 0));
        }
      }
    }
  }
  printf("    off by at most %.1e\n", worst);
}

TEST(ties_go_to_the_lowest_id) {
  std::vector<float> logits(700, 0.0f);
  logits[5] = logits[300] = logits[650] = 2;
  Sampling s = greedy();
  s.alternatives = 4;
  Result r;
  for (const KernelRow* kernels : supported_rows()) {
    REQUIRE(score(*kernels->vector, logits, s, 0, &r));
    CHECK_EQ(r.token, 5);
    CHECK_EQ(r.margin, 0.0f);
    CHECK((r.alternative_token == std::vector<int32_t>{5, 300, 650, 0}));
    s.scores_sampled = true;
    s.top_k = 2;
    REQUIRE(score(*kernels->vector, logits, s, 0, &r));
    CHECK((r.alternative_probability == std::vector<float>{0.5f, 0.5f, 0, 0}));
    s.scores_sampled = false;
    s.top_k = 0;
  }
}

TEST(the_nucleus_by_hand) {
  // Probabilities 0.5, 0.25, 0.125, 0.125: a token stays while the mass before it is at most p.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.25f), std::log(0.125f)};
  struct Case {
    float p;
    int kept;
  };
  for (const Case& each : {Case{0.01f, 1}, {0.49f, 1}, {0.51f, 2}, {0.74f, 2}, {0.76f, 3}, {0.87f, 3}, {0.88f, 4}}) {
    Sampling s = greedy();
    s.top_p = each.p;
    s.scores_sampled = true;
    s.alternatives = 4;
    Result r;
    REQUIRE(score(best(), logits, s, 0, &r));
    const auto& p = r.alternative_probability;
    CHECK_EQ(std::count_if(p.begin(), p.end(), [](float v) { return v > 0; }), each.kept);
    CHECK(std::fabs(std::accumulate(p.begin(), p.end(), 0.0f) - 1) < 1e-6);
  }
  // Equal probabilities: those that stay are the first by id. 10 tokens of 0.1 with p = 0.35: masses 0 .. 0.3 stay.
  Sampling s = greedy();
  s.top_p = 0.35f;
  s.scores_sampled = true;
  s.alternatives = 10;
  Result r;
  REQUIRE(score(best(), std::vector<float>(10, 1.5f), s, 0, &r));
  for (int i = 0; i < 10; ++i) CHECK(std::fabs(r.alternative_probability[i] - (i < 4 ? 0.25f : 0)) < 1e-6);
}

TEST(draws_follow_the_distribution) {
  const auto logits = random_floats(12, 8, 1.5f);
  struct Case {
    float temperature, top_p;
    int top_k;
  };
  for (const Case& each : {Case{1, 1, 0}, {0.7f, 1, 0}, {1.5f, 0.9f, 0}, {1, 1, 5}, {1, 0.8f, 6}}) {
    Sampling s = greedy();
    s.temperature = each.temperature;
    s.top_p = each.top_p;
    s.top_k = each.top_k;
    s.seed = 1234567890123;
    const auto p = reference_distribution(logits, s, true);
    const int draws = 40000;
    std::vector<int> count(12);
    Result r;
    for (int i = 0; i < draws; ++i) {
      s.step = i / 1000;
      REQUIRE(score(best(), logits, s, i % 1000, &r));
      count[r.token]++;
    }
    double chi_square = 0;
    int cells = 0;
    for (int i = 0; i < 12; ++i) {
      if (p[i] == 0) {
        CHECK_EQ(count[i], 0);
        continue;
      }
      cells++;
      chi_square += (count[i] - draws * p[i]) * (count[i] - draws * p[i]) / (draws * p[i]);
    }
    CHECK(chi_square < cells - 1 + 4 * std::sqrt(2.0 * cells));  // four deviations; the seed is fixed
  }
}

TEST(hot_and_cold_extremes) {
  const auto logits = random_floats(1000, 3, 4);
  Sampling s = greedy();
  Result cold, argmax;
  REQUIRE(score(best(), logits, s, 0, &argmax));
  for (float temperature : {1e-3f, 1e-20f, 1e-40f}) {
    s.temperature = temperature;
    REQUIRE(score(best(), logits, s, 0, &cold));
    CHECK_EQ(cold.token, argmax.token);
    CHECK_EQ(cold.entropy, argmax.entropy);  // of the raw distribution
  }
  s.scores_sampled = true;
  s.temperature = 1e-20f;
  REQUIRE(score(best(), logits, s, 0, &cold));
  CHECK_EQ(cold.probability, 1.0f);
  CHECK_EQ(cold.entropy, 0.0f);
  s.temperature = 1e20f;
  Result hot;
  REQUIRE(score(best(), logits, s, 0, &hot));
  CHECK(std::fabs(hot.entropy - std::log(1000.0)) < 1e-4);
  // Logits far apart and far from 0.
  REQUIRE(score(best(), {-1e30f, 1e30f, 0}, greedy(), 0, &hot));
  CHECK_EQ(hot.token, 1);
  CHECK_EQ(hot.probability, 1.0f);
}

TEST(logits_that_are_not_finite_are_refused) {
  for (const KernelRow* kernels : supported_rows()) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (int at : {0, 100, 299}) {
        auto logits = random_floats(300, 1);
        logits[at] = bad;
        Result r;
        CHECK(!score(*kernels->vector, logits, greedy(), 0, &r));
        const int32_t forbidden = at;  // forbidding the token does not hide the damage
        Sampling s = greedy();
        s.forbidden = &forbidden;
        s.n_forbidden = 1;
        CHECK(!score(*kernels->vector, logits, s, 0, &r));
      }
    }
  }
}

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
    shape.layers = shape.heads = shape.kv_heads = 1;
    shape.head_dim = dim;
    shape.rows = rows;
    shape.width[static_cast<int>(Buffer::x)] = dim;
    shape.max_k = dim;
    shape.vocab = vocab;
    context = ops.create(device, shape);
  }
  ~Engine() {
    ops.destroy(context);
    ops.release(table);
    ops.release(weight);
    ops.close(device);
  }
  const Ops& ops = cpu_ops();
  int dim, vocab;
  std::vector<float> values;
  Tensor head{};
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
      score.push_back(results[r].row(pick[r], r, s));
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
      CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.weight, bias.data(), call.score.data(), rows), -1);
      if (threads == 1) expected = call.results;
      CHECK(call.results == expected);
    }
    // One row at a time, in a context of few rows.
    Engine engine(kernels->name, 2, 3, dim, vocab);
    Call call(engine, rows, 2);
    for (int r = 0; r < rows; ++r) {
      LinearInput input = call.input;
      input.pick += r;
      CHECK_EQ(engine.ops.propose(engine.context, input, engine.weight, bias.data(), &call.score[r], 1), -1);
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
    engine.ops.logits(engine.context, call.input, rows, engine.weight, bias.data(), logits.data());
    CHECK_EQ(logits.back(), 77.0f);
    CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.weight, bias.data(), call.score.data(), rows), -1);
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

TEST(the_first_damaged_row_is_named) {
  Engine engine(nullptr, 3, 90, 32, 300);
  Call call(engine, 90, 1);
  for (int r : {71, 40, 88}) call.x[static_cast<size_t>(call.pick[r]) * 32 + 5] = NAN;
  CHECK_EQ(engine.ops.propose(engine.context, call.input, engine.weight, nullptr, call.score.data(), 90), 40);
}

TEST(embedding_looks_rows_up) {
  Engine engine(nullptr, 2, 40, 32, 300);
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(i * 37 % 300);
  std::vector<float> out(40 * 32);
  engine.ops.embed(engine.context, engine.table, ids.data(), 40, false, out.data());
  for (int i = 0; i < 40 * 32; ++i) CHECK_EQ(out[i], engine.values[ids[i / 32] * 32 + i % 32]);
  engine.ops.embed(engine.context, engine.table, ids.data(), 40, true, out.data());
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
  larger.slots = larger.slot_length = larger.layers = larger.kv_heads = larger.heads = 1 << 30;
  CHECK_THROWS(ops.plan(engine.device, larger), "fewer slots");
  larger.slots = larger.layers = larger.kv_heads = larger.heads = 1 << 7;
  CHECK_THROWS(ops.create(engine.device, larger), "ask for fewer");
}

TEST(a_step_allocates_nothing) {
  const int rows = 40, dim = 32;
  Engine engine(nullptr, 3, rows, dim, 3000);
  Call call(engine, rows, 2);
  std::vector<float> logits(rows * 3000), qkv(rows * 3 * dim, 0.5f), out(rows * dim);
  std::vector<int32_t> ids(rows, 3);
  std::vector<RowInfo> info;
  for (int r = 0; r < rows; ++r) info.push_back({r % 2, r / 2, 0, r / 2 + 1});
  std::sort(info.begin(), info.end(),
            [](auto& a, auto& b) { return std::tie(a.slot, a.position) < std::tie(b.slot, b.position); });
  const std::vector<float> frequencies(dim / 2, 0.1f);
  const LinearOutput output{engine.weight, nullptr, logits.data(), 3000, false};
  const int64_t before = allocations;
  const Ops& ops = engine.ops;
  ops.embed(engine.context, engine.table, ids.data(), rows, false, out.data());
  ops.linear(engine.context, call.input, rows, &output, 1);
  ops.store_kv(engine.context, 0, qkv.data(), 3 * dim, info.data(), rows, {Rope::half, dim, frequencies.data()});
  ops.attention(engine.context, 0, qkv.data(), 3 * dim, info.data(), rows, 0.2f, out.data());
  CHECK_EQ(ops.propose(engine.context, call.input, engine.weight, nullptr, call.score.data(), rows), -1);
  ops.logits(engine.context, call.input, rows, engine.weight, nullptr, logits.data());
  CHECK_EQ(allocations - before, 0);
}
