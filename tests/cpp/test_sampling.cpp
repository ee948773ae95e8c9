// Tokens and scores from logits: the rules of sampling.h against a plain double-precision statement of them, and random
// numbers against published vectors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/philox.h"
#include "cpu/sampling.h"
#include "scored.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

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

TEST(changed_logits_are_scored_as_if_the_model_had_given_them) {
  for (const KernelRow* kernels : supported_rows()) {
    for (int vocab : {33, 256, 1000}) {
      for (int variant = 0; variant < 24; ++variant) {
        const auto logits = random_floats(vocab, vocab * 7 + variant, 2.0f);
        std::vector<int32_t> repeated, bias_token, removed;
        std::vector<uint32_t> allowed((vocab + 31) / 32, 0xdeadbeefu);
        for (int i = variant % 3; i < vocab; i += 3) repeated.push_back(i);
        for (int i = variant % 5; i < vocab; i += 5) bias_token.push_back(i);
        for (int i = 0; i < vocab; ++i) {
          if (!(allowed[i / 32] >> i % 32 & 1)) removed.push_back(i);
        }
        const auto bias = random_floats(bias_token.size(), variant, 3.0f);
        Sampling plain = greedy();
        plain.temperature = variant % 2 * 0.8f;
        plain.top_p = variant % 4 ? 0.9f : 1;
        plain.scores_sampled = variant % 6 > 2;
        plain.alternatives = 5;
        Sampling changed = plain;
        changed.repetition_penalty = variant % 3 ? 1.3f : 0.7f;
        changed.repeated = repeated.data();
        changed.n_repeated = static_cast<int>(repeated.size());
        changed.bias_token = bias_token.data();
        changed.bias = bias.data();
        changed.n_bias = static_cast<int>(bias.size());
        plain.forbidden = removed.data();
        plain.n_forbidden = static_cast<int>(removed.size());

        auto by_hand = logits;
        for (int token : repeated) {
          by_hand[token] = by_hand[token] > 0 ? by_hand[token] / changed.repetition_penalty
                                              : by_hand[token] * changed.repetition_penalty;
        }
        for (size_t i = 0; i < bias.size(); ++i) by_hand[bias_token[i]] += bias[i];
        Result expected, found;
        REQUIRE(score(*kernels->vector, by_hand, plain, variant, &expected));
        REQUIRE(score(*kernels->vector, logits, changed, variant, &found, allowed.data()));
        CHECK(found == expected);
      }
    }
  }
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
        std::vector<uint32_t> allowed(10, ~0u);
        allowed[at / 32] ^= 1u << at % 32;
        CHECK(!score(*kernels->vector, logits, greedy(), 0, &r, allowed.data()));
      }
    }
  }
}
