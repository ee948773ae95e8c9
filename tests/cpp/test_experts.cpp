// Mixtures of experts through the device's operations: the router's rule by hand, sums against double precision, and the
// same bits whatever rows share a call and however many threads work on it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "allocations.h"
#include "cpu/experts.h"
#include "ops.h"
#include "scored.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

struct Shape {
  int dim, width, experts, used, rows;
};

// A layer of experts of float32 and a context for it.
struct Mixture {
  Mixture(const Shape& s, const char* isa, int threads)
      : shape(s),
        router(random_floats(static_cast<size_t>(s.experts) * s.dim, 1, 0.5f)),
        weights(random_floats(static_cast<size_t>(3) * s.experts * s.width * s.dim, 2, 0.3f)) {
    device = ops.open({isa, 1});
    layer.rule = {RouterKind::softmax, s.used, 1, 1, true, 1};
    layer.count = s.experts;
    layer.activation = Activation::silu;
    layer.router = pack(router.data(), s.experts, s.dim);
    for (int part = 0; part < 3; ++part) {
      const bool down = part == 2;
      for (int e = 0; e < s.experts; ++e) {
        packed.push_back(pack(of(part, e), down ? s.dim : s.width, down ? s.width : s.dim));
      }
    }
    layer.gate = packed.data();
    layer.up = layer.gate + s.experts;
    layer.down = layer.up + s.experts;
    ContextShape c{};
    c.threads = threads;
    const KvShape kv{1, 1};
    c.kv = &kv;
    c.slots = c.slot_length = c.layers = c.heads = c.vocab = 1;
    c.rows = s.rows;
    c.width[static_cast<int>(Buffer::x)] = s.dim;
    c.max_k = std::max(s.dim, s.width);
    c.experts = s.experts;
    c.experts_used = s.used;
    c.expert_dim = s.width;
    context = ops.create(device, c);
  }
  ~Mixture() {
    ops.destroy(context);
    for (const Weight* weight : packed) ops.release(const_cast<Weight*>(weight));
    ops.release(const_cast<Weight*>(layer.router));
    ops.close(device);
  }
  const float* of(int part, int expert) const {
    return &weights[(static_cast<size_t>(part) * shape.experts + expert) * shape.width * shape.dim];
  }
  const Weight* pack(const float* values, int rows, int columns) {
    Tensor tensor{};
    tensor.name = "w";
    tensor.type = type_traits(0);
    tensor.n_dims = 2;
    tensor.dims[0] = columns;
    tensor.dims[1] = rows;
    tensor.dims[2] = tensor.dims[3] = 1;
    tensor.data = {reinterpret_cast<const uint8_t*>(values), sizeof(float) * rows * columns};
    return ops.pack(device, tensor, Use::multiply);
  }
  std::vector<float> run(const std::vector<float>& x) {
    const int rows = static_cast<int>(x.size()) / shape.dim;
    std::vector<float> y(x.size(), NAN);
    const int64_t before = allocations;
    ops.experts(context, {x.data(), shape.dim, shape.dim, nullptr, Norm{}, Activation::none, nullptr}, rows, layer,
                y.data());
    CHECK_EQ(allocations - before, 0);
    return y;
  }
  // Every expert in double, by the definition of softmax routing with weights that sum to 1.
  std::vector<double> expected(const std::vector<float>& x) const {
    const int rows = static_cast<int>(x.size()) / shape.dim;
    std::vector<double> y(x.size());
    for (int r = 0; r < rows; ++r) {
      const float* row = &x[static_cast<size_t>(r) * shape.dim];
      auto dot = [&](const float* w, const auto* v, int n) {
        double sum = 0;
        for (int i = 0; i < n; ++i) sum += double{w[i]} * v[i];
        return sum;
      };
      std::vector<std::pair<double, int>> ranked;
      for (int e = 0; e < shape.experts; ++e) ranked.push_back({-dot(&router[e * shape.dim], row, shape.dim), e});
      std::sort(ranked.begin(), ranked.end());
      double sum = 0;
      for (int n = 0; n < shape.used; ++n) sum += std::exp(ranked[0].first - ranked[n].first);
      for (int n = 0; n < shape.used; ++n) {
        const int e = ranked[n].second;
        std::vector<double> hidden(shape.width);
        for (int i = 0; i < shape.width; ++i) {
          const double gate = dot(of(0, e) + i * shape.dim, row, shape.dim);
          hidden[i] = gate / (1 + std::exp(-gate)) * dot(of(1, e) + i * shape.dim, row, shape.dim);
        }
        for (int i = 0; i < shape.dim; ++i)
          y[static_cast<size_t>(r) * shape.dim + i] += std::exp(ranked[0].first - ranked[n].first) / sum *
                                                       dot(of(2, e) + i * shape.width, hidden.data(), shape.width);
      }
    }
    return y;
  }
  const Ops& ops = cpu_ops();
  Shape shape;
  std::vector<float> router, weights;
  Device* device;
  Experts layer{};
  std::vector<const Weight*> packed;
  Context* context;
};

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice choose(const RouterRule& rule, const std::vector<float>& logits, const std::vector<float>& bias = {}) {
  Choice choice{std::vector<int32_t>(rule.used), std::vector<float>(rule.used)};
  std::vector<float> scratch(2 * logits.size());
  route(rule, static_cast<int>(logits.size()), logits.data(), bias.empty() ? nullptr : bias.data(), nullptr,
        scratch.data(), choice.experts.data(), choice.weights.data());
  return choice;
}

bool near(float a, double b) { return std::fabs(a - b) <= 1e-6; }

float logit(double score) { return static_cast<float>(std::log(score / (1 - score))); }

}  // namespace

TEST(softmax_weights_with_and_without_a_sum_of_one) {
  const std::vector<float> logits = {std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(3.0f)};
  const Choice plain = choose({RouterKind::softmax, 2, 1, 1, false, 1}, logits);
  CHECK(plain.experts == (std::vector<int32_t>{1, 3}));
  CHECK(near(plain.weights[0], 0.4) && near(plain.weights[1], 0.3));
  const Choice normed = choose({RouterKind::softmax, 2, 1, 1, true, 2.5f}, logits);
  CHECK(near(normed.weights[0], 2.5 * 4 / 7) && near(normed.weights[1], 2.5 * 3 / 7));
}

TEST(a_bias_chooses_and_does_not_weigh) {
  const std::vector<float> logits = {logit(0.9), logit(0.5), logit(0.4), logit(0.2)};
  const Choice choice = choose({RouterKind::sigmoid, 2, 1, 1, true, 1}, logits, {-1, 0, 0, 0.3f});
  CHECK(choice.experts == (std::vector<int32_t>{1, 3}));  // ranks -0.1, 0.5, 0.4, 0.5
  CHECK(near(choice.weights[0], 0.5 / 0.7) && near(choice.weights[1], 0.2 / 0.7));
}

TEST(groups_count_for_their_best_two) {
  // Group sums of the best two: 0.9 + 0.1, 0.6 + 0.5, 0.3 + 0.2: the highest score of all is left out.
  const std::vector<float> logits = {logit(0.9), logit(0.1), logit(0.6), logit(0.5), logit(0.3), logit(0.2)};
  CHECK(choose({RouterKind::sigmoid, 2, 3, 1, true, 1}, logits).experts == (std::vector<int32_t>{2, 3}));
  CHECK(choose({RouterKind::sigmoid, 2, 3, 2, true, 1}, logits).experts == (std::vector<int32_t>{0, 2}));
}

TEST(of_equals_the_first_is_chosen) {
  const std::vector<float> logits(8, 0.25f);
  CHECK(choose({RouterKind::softmax, 3, 1, 1, true, 1}, logits).experts == (std::vector<int32_t>{0, 1, 2}));
  CHECK(choose({RouterKind::sigmoid, 3, 4, 2, true, 1}, logits).experts == (std::vector<int32_t>{0, 1, 2}));
}

TEST(sums_equal_double_precision_at_ragged_shapes) {
  const Shape shapes[] = {{8, 1, 2, 1, 1},     {16, 5, 3, 3, 7},  {33, 17, 5, 2, 31},
                          {64, 32, 8, 3, 200}, {48, 40, 1, 1, 9}, {24, 33, 40, 8, 129}};
  int count;
  const IsaRow* isas = isa_rows(&count);
  for (const Shape& shape : shapes) {
    const auto x = random_floats(static_cast<size_t>(shape.rows) * shape.dim, 3, 1);
    for (int i = 0; i < count; ++i) {
      if (!isas[i].supported()) continue;
      Mixture mixture(shape, isas[i].name, 2);
      const auto expected = mixture.expected(x);
      const auto got = mixture.run(x);
      double worst = 0, largest = 0;
      for (size_t j = 0; j < got.size(); ++j) {
        const double error = std::fabs(got[j] - expected[j]);
        if (!(error <= worst)) worst = error;
        largest = std::max(largest, std::fabs(expected[j]));
      }
      CHECK(worst <= 2e-6 * std::max(largest, 1.0));
    }
  }
}

TEST(a_row_does_not_depend_on_its_company) {
  const Shape shape{40, 24, 6, 2, 700};  // 1,400 pairs: three slabs
  const auto x = random_floats(static_cast<size_t>(shape.rows) * shape.dim, 4, 1);
  Mixture one(shape, nullptr, 1), three(shape, nullptr, 3);
  const auto whole = one.run(x);
  CHECK(whole == three.run(x));
  for (int first : {0, 1, 350, 699}) {
    for (int rows : {1, 2, 17}) {
      if (first + rows > shape.rows) continue;
      const std::vector<float> some(x.begin() + first * shape.dim, x.begin() + (first + rows) * shape.dim);
      const auto got = three.run(some);
      CHECK(memcmp(got.data(), &whole[first * shape.dim], got.size() * sizeof(float)) == 0);
    }
  }
}
