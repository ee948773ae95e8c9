// The head's operations: rows of logits in parts that fit their memory, scored on the device; only tokens and a few numbers
// come back.
#include <cmath>
#include <cstring>

#include "cpu/philox.h"
#include "cuda/context.h"

namespace ld {
namespace {

// The lists of all samplings of a call, in one block of device memory.
class Lists {
 public:
  template <class T>
  size_t add(const T* values, size_t count) {
    const size_t at = bytes_.size();
    bytes_.resize(at + (count * sizeof(T) + 15) / 16 * 16);
    if (count > 0) memcpy(bytes_.data() + at, values, count * sizeof(T));
    return at;
  }
  const uint8_t* send(Context* c) {
    if (c->lists == nullptr || c->lists->bytes() < bytes_.size())
      c->lists = std::make_unique<Memory>(std::max<size_t>(bytes_.size(), 4096));
    to_device(c, c->lists->data(), bytes_.data(), bytes_.size());
    return c->lists->data();
  }

 private:
  std::vector<uint8_t> bytes_;
};

// The tasks of rows [first, first + count), whose lists are sent.
std::vector<cuda::ScoreTask> tasks_of(Context* c, const ScoreRow* score, int first, int count, int vocab) {
  struct Places {
    size_t forbidden, repeated, bias_token, bias;
  };
  Lists lists;
  std::map<const Sampling*, Places> placed;
  std::vector<size_t> allowed(count);
  for (int i = 0; i < count; ++i) {
    const Sampling& s = *score[first + i].sampling;
    if (placed.find(&s) == placed.end())
      placed[&s] = {lists.add(s.forbidden, s.n_forbidden), lists.add(s.repeated, s.n_repeated),
                    lists.add(s.bias_token, s.n_bias), lists.add(s.bias, s.n_bias)};
    if (score[first + i].allowed != nullptr) allowed[i] = lists.add(score[first + i].allowed, (vocab + 31) / 32);
  }
  const uint8_t* sent = lists.send(c);
  const auto at = [&]<class T>(size_t place, const T*) { return reinterpret_cast<const T*>(sent + place); };
  std::vector<cuda::ScoreTask> tasks;
  for (int i = 0; i < count; ++i) {
    const ScoreRow& row = score[first + i];
    const Sampling& s = *row.sampling;
    const Places& places = placed[&s];
    const bool alternatives = row.alternative_token != nullptr || row.alternative_probability != nullptr;
    tasks.push_back({s.temperature, s.top_p, s.guidance, s.repetition_penalty, s.top_k, s.scores_sampled,
                     alternatives ? s.alternatives : 0, s.n_forbidden, s.n_repeated, s.n_bias,
                     philox_uniform(s.seed, row.position, s.step), at(places.forbidden, s.forbidden),
                     at(places.repeated, s.repeated), at(places.bias_token, s.bias_token), at(places.bias, s.bias),
                     row.allowed == nullptr ? nullptr : at(allowed[i], row.allowed), s.guidance != 0 ? i + 1 : -1,
                     i > 0 && score[first + i - 1].sampling->guidance != 0, row.wanted});
  }
  return tasks;
}

// Calls use(first, count) for parts of the rows, whose logits are computed then.
template <class Use>
void for_logits(Context* c, const LinearInput& input, const OutputLayer& head, const ScoreRow* score, int rows,
                Use use) {
  const Made made = produce(c, input, rows);
  const int vocab = head.weight->matrix.n;
  for (int first = 0, count; first < rows; first += count) {
    count = std::min(c->layout.chunk, rows - first);
    if (score != nullptr && score[first + count - 1].sampling->guidance != 0) --count;  // its companion follows
    Made part = made;
    part.x += first * made.stride;
    part.rows = count;
    multiply(c, part, head.weight, head.bias, c->layout.logits, vocab);
    if (head.cap > 0) cuda::cap(c->stream, c->layout.logits, static_cast<size_t>(count) * vocab, head.cap);
    use(first, count);
  }
}

// The expected embeddings that rows [0, count) of the logits are asked for.
void leave_feedback(Context* c, const OutputLayer& head, const ScoreRow* score, int count) {
  std::vector<float> factors;
  std::vector<int32_t> rows;
  bool any = false;
  for (const ScoreRow* row = score; row < score + count; ++row) {
    const float temperature = row->sampling->temperature;
    factors.push_back(temperature > 0 ? std::min(1 / temperature, 1e30f) : 1);
    rows.push_back(row->feedback);
    any = any || row->feedback >= 0;
  }
  if (!any) return;
  const Layout& at = c->layout;
  to_device(c, at.expectation.factor, factors.data(), count);
  to_device(c, at.expectation.row, rows.data(), count);
  cuda::expect(c->stream, at.logits, at.exponentials, head.table->matrix, head.table_scale, at.expectation, count,
               at.buffers[static_cast<int>(Buffer::feedback)]);
  finish(c);  // the vectors go
}

}  // namespace

int propose(Context* c, const LinearInput& input, const OutputLayer& head, const ScoreRow* score, int rows) {
  int bad = -1;
  const int vocab = head.weight->matrix.n;
  const Layout& at = c->layout;
  for_logits(c, input, head, score, rows, [&](int first, int count) {
    leave_feedback(c, head, score + first, count);
    for (int i = 0; i < count; ++i) {
      if (score[first + i].logits != nullptr)
        to_host(c, score[first + i].logits, at.logits + static_cast<size_t>(i) * vocab, vocab);
    }
    const auto tasks = tasks_of(c, score, first, count, vocab);
    to_device(c, at.tasks, tasks.data(), tasks.size());
    cuda::score(c->stream, at.logits, at.exponentials, vocab, vocab, at.tasks, count, at.results);
    std::vector<int32_t> token(count), wrong(count), other(static_cast<size_t>(count) * kMostTop);
    std::vector<float> probability(count), margin(count), entropy(count), others(other.size());
    to_host(c, token.data(), at.results.token, count);
    to_host(c, wrong.data(), at.results.bad, count);
    to_host(c, probability.data(), at.results.probability, count);
    to_host(c, margin.data(), at.results.margin, count);
    to_host(c, entropy.data(), at.results.entropy, count);
    to_host(c, other.data(), at.results.alternative_token, other.size());
    to_host(c, others.data(), at.results.alternative_probability, others.size());
    finish(c);
    for (int i = 0; i < count; ++i) {
      const ScoreRow& row = score[first + i];
      if (tasks[i].skip) continue;
      if (wrong[i]) {
        if (bad < 0) bad = first + i;
        continue;
      }
      if (row.token) *row.token = token[i];
      if (row.probability) *row.probability = probability[i];
      if (row.margin) *row.margin = margin[i];
      if (row.entropy) *row.entropy = entropy[i];
      const ptrdiff_t from = static_cast<ptrdiff_t>(i) * kMostTop;
      if (row.alternative_token) std::copy_n(&other[from], tasks[i].alternatives, row.alternative_token);
      if (row.alternative_probability) std::copy_n(&others[from], tasks[i].alternatives, row.alternative_probability);
    }
  });
  return bad;
}

int logits(Context* c, const LinearInput& input, int rows, const OutputLayer& head, float* out) {
  const size_t vocab = head.weight->matrix.n;
  for_logits(c, input, head, nullptr, rows, [&](int first, int count) {
    to_host(c, out + first * vocab, c->layout.logits, count * vocab);
    finish(c);
  });
  for (int row = 0; row < rows; ++row) {
    const float* from = out + row * vocab;
    if (!std::all_of(from, from + vocab, [](float x) { return std::isfinite(x); })) return row;
  }
  return -1;
}

}  // namespace ld
