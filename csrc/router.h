// How a row's experts follow from the router's scores, the same code on every device: the choice under RouterRule and the
// weights. constexpr, so that device compilers take it too. Not here: softmax and sigmoid, which need exp.
#pragma once

#include <cstdint>
#include <limits>

#include "ops.h"

namespace ld {

// Sets the ranks of groups that are left out to -infinity. A group counts for the sum of its best two.
constexpr void drop_groups(const RouterRule& rule, int count, float* ranks) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int size = count / rule.groups;
  float sums[kMostGroups] = {};
  for (int g = 0; g < rule.groups; ++g) {
    float best = -kInfinity, second = -kInfinity;
    for (int i = g * size; i < (g + 1) * size; ++i) {
      if (ranks[i] > best) {
        second = best;
        best = ranks[i];
      } else if (ranks[i] > second) {
        second = ranks[i];
      }
    }
    sums[g] = best + second;
  }
  for (int left = rule.groups - rule.groups_used; left > 0; --left) {
    int worst = 0;
    for (int g = 1; g < rule.groups; ++g)
      if (sums[g] <= sums[worst]) worst = g;  // of equals the last one goes
    sums[worst] = kInfinity;
    for (int i = worst * size; i < (worst + 1) * size; ++i) ranks[i] = -kInfinity;
  }
}

// The rule's experts of a row, ascending, and their weights. ranks is scratch of `count` floats; bias and gain may be null.
constexpr void choose_experts(const RouterRule& rule, int count, const float* scores, const float* bias,
                              const float* gain, float* ranks, int32_t* chosen, float* weights) {
  for (int i = 0; i < count; ++i) ranks[i] = bias != nullptr ? scores[i] + bias[i] : scores[i];
  if (rule.groups > 1) drop_groups(rule, count, ranks);
  for (int n = 0; n < rule.used; ++n) {
    int best = 0;  // of equals the first
    for (int i = 1; i < count; ++i)
      if (ranks[i] > ranks[best]) best = i;
    ranks[best] = -std::numeric_limits<float>::infinity();
    int at = n;
    for (; at > 0 && chosen[at - 1] > best; --at) chosen[at] = chosen[at - 1];
    chosen[at] = best;
  }
  float sum = 0;
  for (int n = 0; n < rule.used; ++n) sum += weights[n] = scores[chosen[n]];
  const float factor = rule.renormalise ? rule.scale / (sum + 1e-20f) : rule.scale;
  for (int n = 0; n < rule.used; ++n) weights[n] *= gain != nullptr ? factor * gain[chosen[n]] : factor;
}

}  // namespace ld
