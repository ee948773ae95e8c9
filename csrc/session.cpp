#include "session.h"

#include <algorithm>
#include <chrono>

#include "error.h"
#include "scoring.h"

namespace ld {
namespace {

struct Interval {
  int32_t lo, hi;
};

// What is a canvas of its own and does not see the shadows behind it.
int32_t length_of(const ld_canvas& canvas) { return canvas.length - canvas.n_shadow; }

// The place that a shadow asks for, -1 where the place is none.
int32_t hidden_from(const ld_canvas& canvas, int32_t place) {
  return place < length_of(canvas) ? -1 : canvas.hidden[place - length_of(canvas)];
}

Interval visible(const ld_canvas& canvas, int32_t position) {
  const int32_t length = length_of(canvas);
  if (position >= length) return {0, canvas.length};
  switch (canvas.attention) {
    case LD_ATTENTION_CAUSAL:
      return {0, position + 1};
    case LD_ATTENTION_BLOCK_CAUSAL:
      return {0, static_cast<int32_t>(std::min<int64_t>(
                     length, (static_cast<int64_t>(position) / canvas.block_length + 1) * canvas.block_length))};
    case LD_ATTENTION_PREFIX_CAUSAL:
      return {0, position < canvas.prefix ? position + 1 : length};
    default:
      return {0, length};
  }
}

// Whether a row belongs to a prompt, whose rows see nothing that follows them, or to a canvas.
bool in_prompt(const ld_canvas& canvas, int32_t position) {
  return canvas.attention == LD_ATTENTION_CAUSAL ||
         (canvas.attention == LD_ATTENTION_PREFIX_CAUSAL && position < canvas.prefix);
}

// Where the positions begin that see what a row sees ahead.
int32_t stretch_begin(const ld_canvas& canvas, int32_t position) {
  if (in_prompt(canvas, position)) return position;
  if (canvas.attention == LD_ATTENTION_BLOCK_CAUSAL) return position / canvas.block_length * canvas.block_length;
  return canvas.attention == LD_ATTENTION_PREFIX_CAUSAL ? canvas.prefix : 0;
}

// What layers with a window see of it.
Interval windowed(const ModelConfig& config, const ld_canvas& canvas, int32_t position, const Interval& seen) {
  const int32_t window = config.window;
  if (config.window_behind) return {std::max(seen.lo, stretch_begin(canvas, position) - window + 1), seen.hi};
  return {std::max(seen.lo, position - window),
          static_cast<int32_t>(std::min<int64_t>(seen.hi, int64_t{position} + window + 1))};
}

// The row that predicts a position.
int32_t source_of(const ld_canvas& canvas, int32_t position) {
  return canvas.logit_shift && position > 0 && position < length_of(canvas) ? position - 1 : position;
}

int32_t position_at(const ld_canvas& canvas, int32_t place) {
  if (hidden_from(canvas, place) >= 0) return source_of(canvas, hidden_from(canvas, place));
  return canvas.positions == nullptr ? place : canvas.positions[place];
}

int in_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    throw Error(LD_INVALID,
                text("%s is %lld, expected %lld to %lld", name, (long long)value, (long long)low, (long long)high));
  return static_cast<int>(value);
}

// The row before a canvas may be scored beside its own.
int score_rows_of(const SessionOptions& o) { return o.rows + o.slots; }

ContextShape part_shape_of(const Model& model, const SessionOptions& o, const Part& part) {
  ContextShape shape = context_shape(model, o.slots, o.slot_length, o.rows, score_rows_of(o));
  shape.threads = o.threads;
  shape.math = o.math;
  return part_shape(shape, part, part.last == model.config().layers);
}

}  // namespace

SessionOptions Session::resolve(const Model& model, const ld_session_options& options) {
  const int context = model.config().context_length;
  SessionOptions result{};
  result.slots = in_range("slots", options.slots == 0 ? 1 : options.slots, 1, 4096);
  result.slot_length = in_range("slot_length", options.slot_length == 0 ? context : options.slot_length, 1, context);
  const int64_t most = static_cast<int64_t>(result.slots) * result.slot_length;
  result.rows = in_range("rows", options.rows == 0 ? most : options.rows, 1, most);
  result.threads = in_range("threads", options.threads, 0, 1024);
  result.math = in_range("math", options.math, LD_MATH_EXACT, LD_MATH_FAST) == LD_MATH_FAST ? Math::fast : Math::exact;
  return result;
}

uint64_t Session::plan(const Model& model, const SessionOptions& o) {
  const size_t score_rows = score_rows_of(o);
  size_t own = o.rows * (3 * sizeof(int32_t) + 2 * sizeof(RowInfo) + 1) +
               score_rows * (sizeof(int32_t) + sizeof(ScoreRow)) + o.slots * (sizeof(Sampling) + 1) +
               (2 * static_cast<size_t>(o.slot_length) + 1) * sizeof(int32_t) +
               2 * static_cast<size_t>(o.slots) * o.slot_length + token_words(model.config().vocab) * sizeof(uint32_t);
  for (const Part& part : model.parts())
    if (part.ops == &cpu_ops()) own += part.ops->plan(part.device, part_shape_of(model, o, part));
  return own;
}

uint64_t Session::plan_device(const Model& model, const SessionOptions& o) {
  const Part& last = model.parts().back();
  return last.ops == &cpu_ops() ? 0 : last.ops->plan(last.device, part_shape_of(model, o, last));
}

Session::Session(const Model& model, const SessionOptions& options) : model_(model), options_(options) {
  const size_t score_rows = score_rows_of(options);
  tokens_.reserve(options.rows);
  positions_.reserve(options.rows);
  info_.reserve(options.rows);
  windowed_.reserve(options.rows);
  canvas_row_.reserve(options.rows);
  feedback_.reserve(options.rows);
  pick_.reserve(score_rows);
  score_.reserve(score_rows);
  sampling_.reserve(options.slots);
  slot_used_.resize(options.slots);
  row_of_.resize(options.slot_length);
  known_before_.resize(options.slot_length + 1);
  known_.resize(static_cast<size_t>(options.slots) * options.slot_length);
  expected_.resize(known_.size());
  possible_.resize(token_words(model.config().vocab));
  contexts_.resize(model.parts().size());
  try {
    for (size_t i = 0; i < contexts_.size(); i++) {
      const Part& part = model.parts()[i];
      contexts_[i] = part.ops->create(part.device, part_shape_of(model, options, part));
    }
  } catch (...) {
    destroy();
    throw;
  }
}

Session::~Session() { destroy(); }

void Session::destroy() {
  for (size_t i = 0; i < contexts_.size(); i++)
    if (contexts_[i] != nullptr) model_.parts()[i].ops->destroy(contexts_[i]);
}

void Session::check(const ld_canvas& canvas, int index) {
  auto expect = [&](bool good, const char* what) {
    if (!good) throw Error(LD_INVALID, text("canvas %d: %s", index, what));
  };
  in_range("slot", canvas.slot, 0, options_.slots - 1);
  if (canvas.length < 1 || canvas.length > options_.slot_length)
    throw Error(LD_INVALID,
                text("canvas %d: length is %d, expected 1 to %d", index, canvas.length, options_.slot_length));
  expect(canvas.tokens != nullptr, "tokens is NULL");
  expect(!slot_used_[canvas.slot], "its slot is used by another canvas of the same call");
  expect(canvas.attention >= LD_ATTENTION_FULL && canvas.attention <= LD_ATTENTION_PREFIX_CAUSAL,
         "unknown attention kind");
  expect(canvas.attention != LD_ATTENTION_BLOCK_CAUSAL || canvas.block_length > 0, "block_length must be positive");
  expect(canvas.prefix >= 0 && canvas.prefix <= canvas.length, "prefix lies outside the canvas");
  if (canvas.positions != nullptr) {
    expect(!canvas.logit_shift, "positions and logit_shift exclude each other: the row before is another position's");
    expect(model_.config().window == 0, "positions cannot be given to a model with windows");
    for (int p = 0; p < canvas.length; p++)
      if (canvas.positions[p] < 0 || canvas.positions[p] >= options_.slot_length)
        throw Error(LD_INVALID, text("canvas %d: positions[%d] is %d, expected 0 to %d", index, p, canvas.positions[p],
                                     options_.slot_length - 1));
  }
  expect(canvas.n_shadow >= 0 && canvas.n_shadow < canvas.length, "n_shadow must be 0 or more and less than length");
  if (canvas.n_shadow > 0) {
    expect(canvas.hidden != nullptr, "hidden is NULL");
    expect(canvas.positions == nullptr,
           "positions and shadows exclude each other: the place hidden would be another's");
    expect(model_.config().window == 0, "shadows cannot be given to a model with windows");
    check_ascending("hidden", "positions", index, canvas.hidden, canvas.n_shadow, length_of(canvas));
  }
  expect(canvas.feedback >= 0 && canvas.feedback <= (LD_FEEDBACK_LEAVE | LD_FEEDBACK_TAKE), "unknown feedback");
  expect(canvas.feedback == 0 || model_.feedback().ffn.width > 0, "feedback is not for this model, which takes none");
  expect(canvas.feedback == 0 || canvas.n_shadow == 0, "feedback and shadows exclude each other");
  expect(canvas.automaton == nullptr, "an automaton is for ld_logits_propose, when the logits of all rows are known");
  expect(canvas.n_compute >= 0, "a count is negative");
  const int vocab = model_.config().vocab;
  for (int p = 0; p < canvas.length; p++)
    if (canvas.tokens[p] < 0 || canvas.tokens[p] >= vocab)
      throw Error(LD_INVALID, text("canvas %d: token %d at position %d is outside the vocabulary of %d", index,
                                   canvas.tokens[p], p, vocab));
  if (canvas.compute != nullptr)
    check_ascending("compute", "positions", index, canvas.compute, canvas.n_compute, canvas.length);
  check_scored(canvas, index, vocab, &possible_);
}

void Session::gather(const ld_canvas* canvases, int n_canvases, bool propose) {
  canvas_row_.clear();
  feedback_.clear();
  tokens_.clear();
  positions_.clear();
  info_.clear();
  windowed_.clear();
  pick_.clear();
  score_.clear();
  sampling_.clear();
  std::fill(slot_used_.begin(), slot_used_.end(), 0);
  in_range("the number of canvases", n_canvases, 1, options_.slots);
  for (int i = 0; i < n_canvases; i++) {
    check(canvases[i], i);
    slot_used_[canvases[i].slot] = 1;
    const bool companion = propose && i > 0 && canvases[i - 1].guidance != 0;
    const bool guided = propose && canvases[i].guidance != 0;
    if (!propose && (canvases[i].feedback & LD_FEEDBACK_LEAVE) != 0)
      throw Error(LD_INVALID, text("canvas %d: raw logits leave no feedback; ask for proposals", i));
    if (canvases[i].guidance != 0) check_companion(canvases[i], i + 1 < n_canvases ? &canvases[i + 1] : nullptr, i);
    const size_t count = canvases[i].n_score, step = guided || companion ? 2 : 1;
    const size_t first = companion ? score_.size() - 2 * count + 1 : score_.size();
    if (!companion) {
      score_.resize(first + step * count);
      pick_.resize(score_.size());
    }
    gather_canvas(canvases[i], i, first, step);
  }
  if (info_.empty()) throw Error(LD_INVALID, "no rows to compute");
}

void Session::gather_canvas(const ld_canvas& canvas, int index, size_t first, size_t step) {
  const int count = canvas.compute == nullptr ? canvas.length : canvas.n_compute;
  if (static_cast<int64_t>(info_.size()) + count > options_.rows)
    throw Error(LD_INVALID, text("canvas %d: %d rows do not fit, the session computes %d rows a call", index, count,
                                 options_.rows));
  const uint8_t* known = &known_[static_cast<size_t>(canvas.slot) * options_.slot_length];
  std::fill(row_of_.begin(), row_of_.begin() + canvas.length, -1);
  for (int i = 0; i < count; i++) {
    const int32_t place = canvas.compute == nullptr ? i : canvas.compute[i];
    row_of_[place] = static_cast<int32_t>(info_.size());
    const Interval seen = visible(canvas, place);
    const Interval near = windowed(model_.config(), canvas, place, seen);
    const int32_t position = position_at(canvas, place);
    tokens_.push_back(canvas.tokens[place]);
    canvas_row_.push_back(!in_prompt(canvas, place));
    feedback_.push_back(-1);
    positions_.push_back(position);
    // Values that were never computed have nothing in common with the new ones.
    float* drift = canvas.value_drift == nullptr ? nullptr : canvas.value_drift + i;
    if (drift != nullptr) *drift = known[place] ? 0.0f : 1.0f;
    if (!known[place]) drift = nullptr;
    const int32_t hidden = hidden_from(canvas, place);
    info_.push_back({canvas.slot, place, seen.lo, seen.hi, position, hidden, drift});
    windowed_.push_back({canvas.slot, place, near.lo, near.hi, position, hidden, drift});
  }
  if ((canvas.feedback & LD_FEEDBACK_TAKE) != 0) take_feedback(canvas, index);

  known_before_[0] = 0;
  for (int p = 0; p < canvas.length; p++) known_before_[p + 1] = known_before_[p] + (known[p] || row_of_[p] >= 0);
  for (size_t row = info_.size() - count; row < info_.size(); row++) {
    const RowInfo& info = info_[row];
    if (known_before_[info.hi] - known_before_[info.lo] != info.hi - info.lo)
      throw Error(LD_INVALID, text("canvas %d: position %d sees positions [%d, %d), some of which were never computed",
                                   index, info.place, info.lo, info.hi));
  }

  sampling_.push_back(sampling_of(canvas));
  for (int i = 0; i < canvas.n_score; i++) {
    const int32_t position = canvas.score[i], hidden = hidden_from(canvas, position);
    const int32_t row = row_of_[source_of(canvas, position)];
    if (row < 0)
      throw Error(LD_INVALID, text("canvas %d: scoring position %d needs row %d, which is not computed in this call",
                                   index, position, source_of(canvas, position)));
    ScoreRow& score = score_[first + i * step];
    score = scored_row(canvas, i, model_.config().vocab, hidden < 0 ? position_at(canvas, position) : hidden,
                       &sampling_.back());
    if (hidden >= 0) score.wanted = canvas.tokens[hidden];
    if ((canvas.feedback & LD_FEEDBACK_LEAVE) != 0) score.feedback = canvas.slot * options_.slot_length + position;
    pick_[first + i * step] = row;
  }
}

// The computed rows of scored positions are told what was expected there.
void Session::take_feedback(const ld_canvas& canvas, int index) {
  for (int i = 0; i < canvas.n_score; i++) {
    const int32_t place = canvas.score[i], at = canvas.slot * options_.slot_length + place;
    if (row_of_[place] < 0) continue;
    if (!expected_[at])
      throw Error(LD_INVALID, text("canvas %d: position %d is to be told what was expected there, but no call left it",
                                   index, place));
    feedback_[row_of_[place]] = at;
  }
}

// The state of the computed rows is unknown while they are being written, and known once all layers are done. That of
// shadows is for their own call.
void Session::run_forward() {
  auto mark = [&](uint8_t value) {
    for (const RowInfo& info : info_)
      known_[static_cast<size_t>(info.slot) * options_.slot_length + info.place] = value && info.hidden < 0;
  };
  mark(0);
  if (!forward(model_, contexts_, rows(), cancel_, timings_)) {
    cancel_.store(false, std::memory_order_relaxed);
    throw Error(LD_CANCELLED, "cancelled");
  }
  mark(1);
  for (const RowInfo& info : info_)
    if (info.drift != nullptr) *info.drift /= static_cast<float>(model_.config().layers);
}

Rows Session::rows() const {
  return {tokens_.data(),
          positions_.data(),
          info_.data(),
          windowed_.data(),
          canvas_row_.data(),
          feedback_.data(),
          static_cast<int>(info_.size())};
}

void Session::observe(bool on) {
  for (size_t i = 0; i < contexts_.size(); i++) model_.parts()[i].ops->observe(contexts_[i], nullptr);
  observed_.clear();
  observations_.clear();
  if (!on) return;
  for (const Multiplied& tensor : model_.multiplied()) {
    const size_t matrices = tensor.matrices.size();
    Observation& made = observations_.emplace_back();
    made.squares.resize(matrices * tensor.k);
    made.rows.resize(matrices);
    for (size_t i = 0; i < matrices; i++)
      observed_[tensor.matrices[i]] = {&made.squares[i * tensor.k], &made.rows[i]};  // stays: vectors keep their memory
  }
  for (size_t i = contexts_.size(); i-- > 0;) model_.parts()[i].ops->observe(contexts_[i], &observed_);
}

LinearInput Session::scored_input() {
  return head_input(model_, head_context(), pick_.data(), static_cast<int>(pick_.size()));
}

void Session::propose(const ld_canvas* canvases, int n_canvases) {
  gather(canvases, n_canvases, true);
  run_forward();
  if (score_.empty()) return;
  const auto begin = std::chrono::steady_clock::now();
  const int bad = model_.ops().propose(head_context(), scored_input(), model_.head().decoder, score_.data(),
                                       static_cast<int>(score_.size()));
  timings_.head += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const ScoreRow& row : score_)
    if (row.feedback >= 0) expected_[row.feedback] = bad < 0;
  if (bad >= 0) refuse_non_finite(score_[bad]);
}

void Session::logits(const ld_canvas* canvases, int n_canvases, float* out) {
  gather(canvases, n_canvases, false);
  run_forward();
  if (score_.empty()) return;
  const auto begin = std::chrono::steady_clock::now();
  const int bad =
      model_.ops().logits(head_context(), scored_input(), static_cast<int>(score_.size()), model_.head().decoder, out);
  timings_.head += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (bad >= 0) refuse_non_finite(score_[bad]);
}

void Session::lengths(int slot, const int32_t* tokens, int length, float* out) {
  const LengthHead& head = model_.length_head();
  if (head.classes.n == 0)
    throw Error(LD_INVALID, "the model has no length head; give the number of tokens of an answer yourself");
  ld_canvas canvas{};
  canvas.slot = slot;
  canvas.tokens = tokens;
  canvas.length = length;
  gather(&canvas, 1, false);
  run_forward();
  const auto begin = std::chrono::steady_clock::now();
  const LinearInput input = length_input(model_, head_context(), rows());
  const int bad =
      model_.ops().logits(head_context(), input, 1, {head.classes.weight, head.classes.bias, 0, nullptr, 1}, out);
  timings_.head += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (bad >= 0)
    throw Error(LD_NUMERIC,
                "the logits of the lengths are not finite; the model's weights are damaged or its "
                "activations overflow");
}

}  // namespace ld
