// The GPU's attention, run by the emulator of tests/cuda: both kernels against double precision at head sizes, groups and
// intervals of all sorts, and what they promise of a row: bits that its neighbours do not change, values of any magnitude,
// and that what is not finite stays with the rows that see it.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/kernels.h"
#include "test.h"

using namespace ld;

namespace {

struct Case {
  int heads, kv_heads, head_dim, slot_length = 100, slots = 3;
  std::vector<cuda::Row> rows;
  std::vector<float> qkv, keys, values;

  Case(int heads_, int kv_heads_, int head_dim_, int n_rows, std::mt19937& random)
      : heads(heads_), kv_heads(kv_heads_), head_dim(head_dim_) {
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& out, size_t count) {
      out.resize(count);
      for (float& x : out) x = normal(random);
    };
    fill(qkv, static_cast<size_t>(n_rows) * stride());
    fill(keys, static_cast<size_t>(slots) * slot_length * kv_heads * head_dim);
    fill(values, keys.size());
    for (int r = 0; r < n_rows; ++r) {
      const int slot = r * slots / n_rows;
      int lo = static_cast<int>(random() % 90), hi = lo + 1 + static_cast<int>(random() % (slot_length - lo));
      if (r % 3 == 0) lo = 0;
      if (r % 5 == 0) hi = slot_length;
      const int hidden = r % 4 == 1 && hi - lo > 1 ? lo + static_cast<int>(random() % (hi - lo)) : -1;
      rows.push_back({slot, 0, lo, hi, 0, hidden});
    }
  }
  int stride() const { return (heads + 2 * kv_heads) * head_dim; }
  size_t at(int slot, int place, int head) const {
    return ((static_cast<size_t>(slot) * slot_length + place) * kv_heads + head) * head_dim;
  }

  // Rows [first, first + count) as one call.
  std::vector<float> attend(bool exact, int first, int count) {
    std::vector<float> out(static_cast<size_t>(count) * heads * head_dim, 7.0f);
    const cuda::State state{keys.data(), values.data(), slot_length, kv_heads, head_dim};
    const float* q = qkv.data() + static_cast<size_t>(first) * stride();
    cuda::attend(nullptr, {scale(), state, heads, q, stride(), rows.data() + first, count, out.data()}, exact);
    return out;
  }
  std::vector<float> attend(bool exact) { return attend(exact, 0, static_cast<int>(rows.size())); }
  float scale() const { return 1.5f / std::sqrt(static_cast<float>(head_dim)); }

  // The largest error of a row and head, as a share of the largest weighted value of its sum.
  double error(const std::vector<float>& found) const {
    double worst = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int head = 0; head < heads; ++head) {
        const float* q = &qkv[r * stride() + head * head_dim];
        const cuda::Row& row = rows[r];
        std::vector<double> scores;
        double most = -INFINITY, total = 0, size = 0;
        for (int place = row.lo; place < row.hi; ++place) {
          const float* key = &keys[at(row.slot, place, head / (heads / kv_heads))];
          double dot = 0;
          for (int d = 0; d < head_dim; ++d) dot += static_cast<double>(q[d]) * key[d];
          scores.push_back(place == row.hidden ? -INFINITY : dot * scale());
          most = std::max(most, scores.back());
        }
        std::vector<double> sum(head_dim);
        for (int place = row.lo; place < row.hi; ++place) {
          const double weight = std::exp(scores[place - row.lo] - most);
          const float* value = &values[at(row.slot, place, head / (heads / kv_heads))];
          total += weight;
          for (int d = 0; d < head_dim; ++d) {
            sum[d] += weight * value[d];
            size = std::max(size, std::fabs(weight * value[d]));
          }
        }
        for (int d = 0; d < head_dim; ++d) {
          const double error = std::fabs(found[(r * heads + head) * head_dim + d] - sum[d] / total);
          worst = std::max(worst, error / (size / total));
          if (std::isnan(error)) return INFINITY;
        }
      }
    }
    return worst;
  }
};

void check_what_is_not_finite(int head_dim) {
  std::mt19937 random(4);
  Case each(2, 1, head_dim, 12, random);
  const auto before = each.attend(false);
  const int bad = 40;
  for (cuda::Row& row : each.rows) row.slot = 0;
  const auto clean = each.attend(false);
  CHECK(memcmp(before.data(), clean.data(), before.size() * sizeof(float)) != 0);
  for (const bool of_keys : {false, true}) {
    for (const float wrong : {NAN, INFINITY}) {
      Case changed = each;
      (of_keys ? changed.keys : changed.values)[changed.at(0, bad, 0) + 3] = wrong;
      const auto found = changed.attend(false);
      const size_t width = 2 * head_dim;
      int seeing = 0;
      for (size_t r = 0; r < each.rows.size(); ++r) {
        const cuda::Row& row = each.rows[r];
        const bool sees = row.lo <= bad && bad < row.hi && row.hidden != bad;
        seeing += sees;
        if (sees) {
          int finite = 0;
          for (size_t i = 0; i < width; ++i) finite += std::isfinite(found[r * width + i]);
          CHECK(finite < static_cast<int>(width));
        } else {
          CHECK(memcmp(&found[r * width], &clean[r * width], width * sizeof(float)) == 0);
        }
      }
      CHECK(seeing > 2 && seeing < static_cast<int>(each.rows.size()));
    }
  }
}

}  // namespace

TEST(both_kernels_give_the_sums_of_double_precision) {
  std::mt19937 random(1);
  struct Shape {
    int heads, kv_heads, head_dim, rows;
  };
  for (const Shape& s :
       {Shape{2, 1, 2, 5}, Shape{4, 4, 16, 70}, Shape{6, 2, 32, 23}, Shape{7, 1, 40, 31}, Shape{2, 2, 64, 65},
        Shape{9, 3, 64, 9}, Shape{2, 1, 96, 11}, Shape{2, 1, 100, 17}, Shape{4, 2, 128, 33}, Shape{2, 1, 130, 33},
        Shape{3, 1, 192, 13}, Shape{6, 2, 200, 17}, Shape{4, 1, 256, 40}, Shape{33, 1, 256, 2}, Shape{2, 1, 258, 3},
        Shape{1, 1, 33, 3}, Shape{65, 1, 4, 2}}) {
    Case each(s.heads, s.kv_heads, s.head_dim, s.rows, random);
    const auto tensor = each.attend(false), exact = each.attend(true);
    CHECK(each.error(exact) <= 3e-6);
    CHECK(each.error(tensor) <= 3e-6);
    const bool fits = s.head_dim <= 256 && s.head_dim % 2 == 0 && s.heads / s.kv_heads <= (s.head_dim > 128 ? 32 : 64);
    CHECK_EQ(memcmp(tensor.data(), exact.data(), exact.size() * sizeof(float)) != 0, fits);
  }
}

TEST(a_row_has_the_same_bits_in_any_company) {
  std::mt19937 random(2);
  for (const int head_dim : {32, 64, 128, 192, 256}) {
    Case each(4, 2, head_dim, 50, random);
    const auto together = each.attend(false);
    const size_t width = static_cast<size_t>(each.heads) * head_dim;
    for (const int r : {0, 1, 7, 16, 17, 33, 49}) {
      CHECK(memcmp(each.attend(false, r, 1).data(), &together[r * width], width * sizeof(float)) == 0);
    }
    CHECK(memcmp(each.attend(false, 11, 30).data(), &together[11 * width], 30 * width * sizeof(float)) == 0);
  }
}

// The exponents of vectors go from -50 to 50, and of some all values are 0; float16 alone ends at -24 and 15.
TEST(values_of_any_magnitude_keep_their_precision) {
  std::mt19937 random(3);
  for (const int head_dim : {64, 256}) {
    Case each(4, 2, head_dim, 20, random);
    for (size_t vector = 0; vector < each.values.size() / head_dim; ++vector) {
      const int shift = static_cast<int>(random() % 101) - 50;
      for (int d = 0; d < head_dim; ++d) {
        float& value = each.values[vector * head_dim + d];
        value = vector % 7 == 0 ? 0 : std::ldexp(value, shift);
        float& key = each.keys[vector * head_dim + d];
        key = vector % 11 == 0 ? 0 : std::ldexp(key, -static_cast<int>(random() % 40));
      }
    }
    for (float& x : each.qkv) x *= 10;
    CHECK(each.error(each.attend(true)) <= 1e-5);  // scores are up to 100, and so is float32's error of them
    CHECK(each.error(each.attend(false)) <= 1e-5);
  }
}

TEST(what_is_not_finite_stays_with_the_rows_that_see_it) {
  for (const int head_dim : {32, 256}) check_what_is_not_finite(head_dim);
}
