// Interval attention and the state of keys and values through the device's operations: against a plain softmax in
// double precision, and bit for bit against itself when threads, batches and rows are cut differently.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "ops.h"
#include "test.h"

using namespace ld;

namespace {

// Values are about 1.5 and scores reach 20, whose float32 rounding alone moves a weight by 1e-6 of itself.
constexpr double kBudget = 1e-5;

struct Shape {
  int heads, kv_heads, head_dim, slots, slot_length;
  int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// A device and a context of one layer pair.
struct Session {
  Session(const Shape& s, const char* isa, int threads, int rows) : shape(s) {
    device = ops.open({isa, 1});
    ContextShape context_shape{};
    context_shape.threads = threads;
    context_shape.slots = s.slots;
    context_shape.slot_length = s.slot_length;
    context_shape.layers = 2;
    context_shape.heads = s.heads;
    context_shape.kv = kv;
    context_shape.rows = rows;
    context_shape.max_k = 32;
    context_shape.vocab = 32;
    context_shape.ropes = 1;
    context = ops.create(device, context_shape);
  }
  ~Session() {
    ops.destroy(context);
    ops.close(device);
  }
  AttentionLayer layer(int index, RopeParams rope = {}) const {
    return {index, Norm{}, Norm{}, Norm{}, rope, 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  }
  // Stores the rows, then attends; returns [rows, heads * head_dim].
  std::vector<float> run(std::vector<float> qkv, const std::vector<RowInfo>& rows, RopeParams rope = {},
                         int index = 1) {
    const int n = static_cast<int>(rows.size());
    ops.store_kv(context, layer(index, rope), qkv.data(), shape.width(), rows.data(), n);
    std::vector<float> out(static_cast<size_t>(n) * shape.heads * shape.head_dim, NAN);
    ops.attention(context, layer(index, rope), qkv.data(), shape.width(), rows.data(), n, out.data());
    return out;
  }
  const Ops& ops = cpu_ops();
  Shape shape;
  const KvShape kv[2] = {{shape.kv_heads, shape.head_dim}, {shape.kv_heads, shape.head_dim}};
  Device* device;
  Context* context;
};

std::vector<float> random_floats(size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 1.5f);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

// Rows of one canvas that holds all its positions: row i is position i. Kinds: full, causal, blocks, windows, and full
// with a position hidden from some of them.
std::vector<RowInfo> canvas(int slot, int length, char kind, int block = 7) {
  std::vector<RowInfo> rows;
  for (int p = 0; p < length; ++p) {
    const int hi = kind == 'f' || kind == 'h' ? length
                   : kind == 'c'              ? p + 1
                                              : std::min(length, (p / block + 1) * block);
    const int lo = kind == 'w' ? std::max(0, p - block) : 0;  // window: causal within `block`
    rows.push_back({slot, p, lo, kind == 'w' ? p + 1 : hi, p});
    if (kind == 'h' && length > 1 && p % 3 > 0) rows.back().hidden = p % 3 == 1 ? p : (p * 7 + 1) % length;
  }
  return rows;
}

// Plain softmax attention of some rows of one canvas; qkv holds all its positions.
std::vector<double> reference(const Shape& s, const std::vector<float>& qkv, const std::vector<RowInfo>& rows) {
  std::vector<double> out(rows.size() * s.heads * s.head_dim);
  for (size_t r = 0; r < rows.size(); ++r) {
    for (int h = 0; h < s.heads; ++h) {
      const int kv = h / (s.heads / s.kv_heads);
      const float* q = &qkv[static_cast<size_t>(rows[r].position) * s.width() + h * s.head_dim];
      std::vector<double> weight;
      double max = -INFINITY, sum = 0;
      for (int p = rows[r].lo; p < rows[r].hi; ++p) {
        const float* k = &qkv[static_cast<size_t>(p) * s.width() + (s.heads + kv) * s.head_dim];
        double score = 0;
        for (int d = 0; d < s.head_dim; ++d) score += double{q[d]} * k[d];
        weight.push_back(p == rows[r].hidden ? -INFINITY : score / std::sqrt(s.head_dim));
        max = std::max(max, weight.back());
      }
      for (double& w : weight) sum += w = std::exp(w - max);
      for (int p = rows[r].lo; p < rows[r].hi; ++p) {
        const float* v = &qkv[static_cast<size_t>(p) * s.width() + (s.heads + s.kv_heads + kv) * s.head_dim];
        for (int d = 0; d < s.head_dim; ++d) {
          out[(r * s.heads + h) * s.head_dim + d] += weight[p - rows[r].lo] / sum * v[d];
        }
      }
    }
  }
  return out;
}

double worst_error(const std::vector<float>& got, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]);
    if (!(error <= worst)) worst = error;  // NaN counts
  }
  return worst;
}

bool same_bits(const float* a, const float* b, size_t n) { return memcmp(a, b, n * sizeof(float)) == 0; }

const std::vector<const char*>& supported_rows() {
  static std::vector<const char*> names;
  if (!names.empty()) return names;
  int count;
  const IsaRow* rows = isa_rows(&count);
  for (int i = 0; i < count; ++i) {
    if (rows[i].supported()) {
      names.push_back(rows[i].name);
    } else {
      printf("not run here: kernel row %s, the processor lacks it\n", rows[i].name);
    }
  }
  return names;
}

}  // namespace

TEST(matches_plain_softmax_at_ragged_shapes) {
  const Shape shapes[] = {{1, 1, 1, 1, 300},   {2, 2, 2, 1, 300},   {4, 2, 6, 1, 300},   {3, 1, 8, 1, 300},
                          {4, 4, 16, 1, 300},  {9, 3, 64, 1, 300},  {14, 2, 64, 1, 300}, {5, 1, 80, 1, 300},
                          {2, 1, 100, 1, 300}, {2, 2, 128, 1, 300}, {71, 1, 16, 1, 300}, {100, 1, 8, 1, 300}};
  for (const Shape& shape : shapes) {
    for (int length : {1, 2, 3, 5, 7, 8, 15, 17, 31, 32, 33, 63, 65, 127, 128, 129, 257}) {
      if (length > 70 && shape.heads > 20) continue;
      for (char kind : {'f', 'c', 'b', 'w', 'h'}) {
        const auto rows = canvas(0, length, kind);
        const auto qkv = random_floats(static_cast<size_t>(length) * shape.width(), length);
        const auto expected = reference(shape, qkv, rows);
        for (const char* isa : supported_rows()) {
          Session session(shape, isa, 1, length);
          CHECK(worst_error(session.run(qkv, rows), expected) <= kBudget);
        }
      }
    }
  }
}

TEST(stays_good_at_4096_positions) {
  const Shape shape{2, 1, 64, 1, 4096};
  const auto qkv = random_floats(static_cast<size_t>(4096) * shape.width(), 9);
  auto all = canvas(0, 4096, 'f');
  for (const char* isa : supported_rows()) {
    Session session(shape, isa, 2, 4096);
    auto copy = qkv;
    session.ops.store_kv(session.context, session.layer(1), copy.data(), shape.width(), all.data(), 4096);
    const std::vector<RowInfo> some(all.begin() + 2000, all.begin() + 2020);
    const std::vector<float> q(qkv.begin() + 2000 * shape.width(), qkv.begin() + 2020 * shape.width());
    CHECK(worst_error(session.run(q, some), reference(shape, qkv, some)) <= kBudget);
  }
}

TEST(a_row_does_not_depend_on_threads_batch_or_company) {
  const Shape shape{6, 2, 24, 4, 400};
  const int lengths[] = {300, 41, 129, 200};
  const char kinds[] = {'c', 'f', 'b', 'h'};
  for (const char* isa : supported_rows()) {
    std::vector<float> together_qkv, separate;
    std::vector<RowInfo> together;
    Session alone(shape, isa, 1, 400);
    for (int c = 0; c < 4; ++c) {
      const auto rows = canvas(c, lengths[c], kinds[c], 32);
      const auto qkv = random_floats(static_cast<size_t>(lengths[c]) * shape.width(), c);
      const auto out = alone.run(qkv, rows);
      separate.insert(separate.end(), out.begin(), out.end());
      together.insert(together.end(), rows.begin(), rows.end());
      together_qkv.insert(together_qkv.end(), qkv.begin(), qkv.end());
    }
    for (int threads : {1, 2, 3, 4}) {
      Session session(shape, isa, threads, 700);
      const auto out = session.run(together_qkv, together);
      REQUIRE(out.size() == separate.size());
      CHECK(same_bits(out.data(), separate.data(), out.size()));
    }
    // Any subset of rows of a stored canvas, alone or in odd groups, gives the bits of the whole.
    const auto rows = canvas(0, lengths[0], kinds[0], 32);
    const auto qkv = random_floats(static_cast<size_t>(lengths[0]) * shape.width(), 0);
    for (int step : {1, 2, 3, 7, 50}) {
      std::vector<RowInfo> some;
      std::vector<float> some_qkv;
      for (int p = 5; p < lengths[0]; p += step) {
        some.push_back(rows[p]);
        some_qkv.insert(some_qkv.end(), qkv.begin() + p * shape.width(), qkv.begin() + (p + 1) * shape.width());
      }
      const auto out = alone.run(some_qkv, some);
      const size_t width = shape.heads * shape.head_dim;
      for (size_t i = 0; i < some.size(); ++i) {
        CHECK(same_bits(&out[i * width], &separate[some[i].place * width], width));
      }
    }
  }
}

TEST(positions_outside_the_interval_never_matter) {
  const Shape shape{4, 2, 16, 1, 300};
  const int length = 200, width = shape.heads * shape.head_dim;
  for (const char* isa : supported_rows()) {
    auto qkv = random_floats(static_cast<size_t>(length) * shape.width(), 3);
    auto rows = canvas(0, length, 'f');
    for (int p = 0; p < length; ++p) {
      rows[p].lo = p / 3;
      rows[p].hi = std::min(150, p + 40);
      if (rows[p].hi <= rows[p].lo) rows[p].lo = rows[p].hi - 1;
    }
    Session session(shape, isa, 2, length);
    const auto clean = session.run(qkv, rows);
    // Spoil the stored keys and values of [150, 200), which nobody sees, and of [0, 10), which early rows see.
    for (int p = 0; p < length; ++p) {
      if (p >= 150 || p < 10) {
        for (int i = width; i < shape.width(); ++i) qkv[static_cast<size_t>(p) * shape.width() + i] = NAN;
      }
    }
    const auto spoilt = session.run(qkv, rows);
    for (int p = 0; p < length; ++p) {
      if (rows[p].lo >= 10) {
        CHECK(same_bits(&clean[static_cast<size_t>(p) * width], &spoilt[static_cast<size_t>(p) * width], width));
      } else {
        CHECK(std::isnan(spoilt[static_cast<size_t>(p) * width]));
      }
    }
  }
}

TEST(a_hidden_position_never_matters_to_the_row_it_is_hidden_from) {
  const Shape shape{4, 2, 16, 1, 300};
  const int length = 200, width = shape.heads * shape.head_dim;
  for (const char* isa : supported_rows()) {
    auto qkv = random_floats(static_cast<size_t>(length) * shape.width(), 3);
    auto rows = canvas(0, length, 'f');
    const auto plain = Session(shape, isa, 2, length).run(qkv, rows);
    for (int p = 0; p < length; p += 2) rows[p].hidden = 131;
    Session session(shape, isa, 2, length);
    const auto before = session.run(qkv, rows);
    for (int i = width; i < shape.width(); ++i) qkv[static_cast<size_t>(131) * shape.width() + i] += 3;
    const auto after = session.run(qkv, rows);
    for (int p = 0; p < length; ++p) {
      const size_t at = static_cast<size_t>(p) * width;
      CHECK_EQ(same_bits(&before[at], &after[at], width), p % 2 == 0);
      CHECK_EQ(same_bits(&before[at], &plain[at], width), p % 2 == 1);
    }
  }
}

TEST(layers_and_slots_are_kept_apart) {
  const Shape shape{2, 2, 8, 2, 40};
  Session session(shape, nullptr, 1, 40);
  const auto rows0 = canvas(0, 33, 'f'), rows1 = canvas(1, 40, 'f');
  const auto a = random_floats(33 * shape.width(), 1), b = random_floats(33 * shape.width(), 2),
             c = random_floats(40 * shape.width(), 3);
  const auto first = session.run(a, rows0, {}, 0);
  session.run(b, rows0, {}, 1);
  session.run(c, rows1, {}, 0);
  auto q = a;
  std::vector<float> again(first.size());
  session.ops.attention(session.context, session.layer(0), q.data(), shape.width(), rows0.data(), 33, again.data());
  CHECK(first == again);
}

TEST(rotary_positions_follow_their_definition) {
  const Shape shape{4, 2, 16, 1, 4096};
  for (const char* isa : supported_rows()) {
    for (Rope kind : {Rope::interleaved, Rope::half}) {
      for (int dims : {16, 8}) {
        Session session(shape, isa, 2, 8);
        std::vector<float> frequencies;
        for (int i = 0; i < dims / 2; ++i) frequencies.push_back(std::pow(10000.0f, -2.0f * i / dims));
        float* uploaded = session.ops.upload(session.device, frequencies.data(), frequencies.size());
        CHECK_EQ(reinterpret_cast<uintptr_t>(uploaded) % 64, 0u);
        const AttentionLayer layer{0, Norm{}, Norm{}, Norm{}, {kind, dims, uploaded, 0, 1, 0, 1}, 1};
        const std::vector<RowInfo> rows = {{0, 0, 0, 1, 0}, {0, 1, 0, 2, 1}, {0, 4095, 4095, 4096, 4095}};
        auto qkv = random_floats(rows.size() * shape.width(), 4);
        const auto before = qkv;
        session.ops.store_kv(session.context, layer, qkv.data(), shape.width(), rows.data(), 3);
        for (size_t r = 0; r < rows.size(); ++r) {
          for (int h = 0; h < shape.heads; ++h) {
            const size_t at = r * shape.width() + h * shape.head_dim;
            std::vector<double> expected(before.begin() + at, before.begin() + at + shape.head_dim);
            for (int i = 0; i < dims / 2; ++i) {
              const int a = kind == Rope::half ? i : 2 * i, b = kind == Rope::half ? i + dims / 2 : 2 * i + 1;
              const double angle = rows[r].position * static_cast<double>(frequencies[i]);
              expected[a] = before[at + a] * std::cos(angle) - before[at + b] * std::sin(angle);
              expected[b] = before[at + a] * std::sin(angle) + before[at + b] * std::cos(angle);
            }
            for (int d = 0; d < shape.head_dim; ++d) CHECK(std::fabs(qkv[at + d] - expected[d]) <= 1e-6);
          }
        }
        session.ops.release_vector(uploaded);
      }
    }
  }
}

TEST(kernel_rows_agree) {
  const Shape shape{4, 2, 64, 1, 200};
  const auto rows = canvas(0, 200, 'c');
  const auto qkv = random_floats(200 * shape.width(), 6);
  Session scalar(shape, "scalar", 1, 200);
  const auto expected = scalar.run(qkv, rows);
  for (const char* isa : supported_rows()) {
    Session session(shape, isa, 1, 200);
    const auto out = session.run(qkv, rows);
    for (size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - expected[i]) <= kBudget);
  }
}
