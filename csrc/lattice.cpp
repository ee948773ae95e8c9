// Layout: the states of each place stand side by side (Reach), with the weight of what can follow beside them; a sweep
// reads those of the next place from arrays over all states, filled for that place and emptied again.
#include "lattice.h"

#include <algorithm>
#include <cmath>

#include "automaton.h"
#include "cpu/arena.h"
#include "cpu/sampling.h"
#include "error.h"
#include "scoring.h"

namespace ld {
namespace {

// Relative to the best of a row, or of a place. A text that the model thinks impossible stays possible, and no product
// of two of the numbers kept per state comes to zero.
constexpr float kLeastLogit = kAbsent / 4;  // any that is given stands for a token that is there
constexpr double kLeastWeight = 1e-30;
constexpr double kLeast = 1e-150;
constexpr double kNever = -INFINITY;

template <class Value>
Value larger(Value a, Value b) {
  return a > b ? a : b;
}

// Four sums or maxima side by side, which do not wait for each other.
template <class Value, class Fold>
Value folded(const float* x, size_t n, Value start, Fold fold) {
  Value lane[4] = {start, start, start, start};
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; j++) lane[j] = fold(lane[j], static_cast<Value>(x[i + j]));
  }
  for (; i < n; i++) lane[0] = fold(lane[0], static_cast<Value>(x[i]));
  return fold(fold(lane[0], lane[1]), fold(lane[2], lane[3]));
}

double sum(const float* x, size_t n) {
  return folded(x, n, 0.0, [](double a, double b) { return a + b; });
}

float largest(const float* x, size_t n) { return folded(x, n, kAbsent, larger<float>); }

// Divided by the largest of its place; what is above zero stays so.
double scaled(double value, double most) { return value > 0 ? std::max(value / most, kLeast) : 0; }

// The same for logits that are changed already.
Sampling of_changed_logits(Sampling sampling) {
  sampling.guidance = 0;
  sampling.n_repeated = sampling.n_bias = 0;
  return sampling;
}

// Tokens of some classes side by side, scored by the rules of sampling as if there were no others.
class Choice {
 public:
  explicit Choice(const Automaton& automaton) : automaton_(automaton) {}

  void lay_out(Arena* arena, int blocks) {
    logits_ = arena->take<float>(blocks, kLogitBlock);
    scratch_ = {arena->take<float>(blocks, kLogitBlock), arena->take<float>(blocks), arena->take<float>(blocks)};
  }

  void clear() {
    parts_.clear();
    count_ = 0;
  }
  // x: the logits of the class; `more` is added to them.
  void add(int kind, const float* x, double more, int target = -1) {
    const int size = static_cast<int>(automaton_.tokens(kind).size());
    parts_.push_back({kind, count_, target});
    for (int i = 0; i < size; i++) logits_[count_ + i] = larger(x[i] + static_cast<float>(more), kLeastLogit);
    count_ += size;
  }
  // Fills the results of `row`, in which tokens are places among those added, also the one that is wanted.
  // Returns the state that the token leads to.
  int score(const VectorKernels& kernels, const ScoreRow& row) {
    int32_t token;
    ScoreRow asked = row;
    asked.token = &token;
    if (!score_row(kernels, logits_, count_, asked, scratch_)) refuse_non_finite(row);
    if (row.token) *row.token = name(token);
    for (int i = 0; row.alternative_token && i < row.sampling->alternatives; i++)
      if (row.alternative_token[i] >= 0) row.alternative_token[i] = name(row.alternative_token[i]);
    return part_of(token).target;
  }
  // The place of a token of an added class.
  int place_of(int32_t token) const {
    const auto tokens = automaton_.tokens(automaton_.class_of(token));
    const auto part = std::find_if(parts_.begin(), parts_.end(),
                                   [&](const Part& each) { return each.kind == automaton_.class_of(token); });
    return part->begin + static_cast<int>(std::lower_bound(tokens.begin(), tokens.end(), token) - tokens.begin());
  }

 private:
  struct Part {
    int kind, begin, target;
  };
  const Part& part_of(int place) const {
    const auto after = [](int at, const Part& part) { return at < part.begin; };
    return *(std::upper_bound(parts_.begin(), parts_.end(), place, after) - 1);
  }
  int32_t name(int place) const {
    const Part& part = part_of(place);
    return automaton_.tokens(part.kind)[place - part.begin];
  }

  const Automaton& automaton_;
  std::vector<Part> parts_;
  int count_ = 0;
  float* logits_;
  LogitScratch scratch_;
};

class Lattice {
 public:
  Lattice(const VectorKernels& kernels, const ld_canvas& canvas, const Stretch& stretch);

  bool possible() const { return reach_.possible(); }
  // companion: of a guided canvas
  void propose(const ld_canvas* companion);

 private:
  void read(int row, const ld_canvas* companion);
  void sweep_back();
  void look_ahead(int place);
  void look_away(int place);
  const double* weights(int place);
  const double* best_weights(int place);
  void spread(int place, const double* weight);
  double share_of_state(int place) const;
  void pass(int place);
  Arc best_arc(const double* open, const double* more, const std::vector<double>& ahead) const;
  int32_t likeliest_of(int bundle, int row) const;
  int draw(int row, double here, int32_t* token);
  void score_given_match(int row, int32_t token);

  ScoreRow results(int row, const Sampling* sampling) const {
    return scored_row(canvas_, row, automaton_.vocab(), canvas_.score[row], sampling);
  }
  const float* of_class(int row, int kind) const { return x_ + row * stride_ + automaton_.first_token(kind); }
  double* sums(int row) const { return sums_ + ptrdiff_t{row} * automaton_.bundles(); }
  double* bests(int row) const { return bests_ + ptrdiff_t{row} * automaton_.bundles(); }

  const VectorKernels& kernels_;
  const ld_canvas& canvas_;
  const Automaton& automaton_;
  const Stretch stretch_;
  const Reach reach_;
  const bool likeliest_;                 // else drawn
  const int blocks_;                     // of all logits
  const ptrdiff_t stride_;               // whole blocks of those that are in a class
  const Sampling asked_;                 // of the canvas
  const Sampling drawn_;                 // what tokens are drawn from
  Sampling given_;                       // scores given a match
  int state_;                            // of the walk
  std::vector<int> row_;                 // [places] the scored row, -1 for none
  std::vector<double> open_, open_log_;  // [bundles] weights where nothing is scored, and their logarithms
  std::vector<double> after_, best_;     // [reach] weight of all that can follow; of the likeliest of it, a logarithm
  std::vector<double> ahead_, best_ahead_;  // [states] the same of the next place, 0 and kNever elsewhere
  std::vector<double> before_, next_;       // [states] weight of all that leads to those of this place, of the next
  std::vector<double> through_;             // [bundles] weight of all that passes through, but for their own
  std::vector<double> of_kind_;             // [classes] scratch

  Scratch memory_;
  Choice choice_;
  float* logits_;  // [blocks][kLogitBlock], of a row
  LogitScratch scratch_;
  float* x_;               // [rows][stride] logits by class
  double *sums_, *bests_;  // [rows][bundles] the weights of their tokens added up; the largest logarithm
};

Lattice::Lattice(const VectorKernels& kernels, const ld_canvas& canvas, const Stretch& stretch)
    : kernels_(kernels),
      canvas_(canvas),
      automaton_(canvas.automaton->automaton),
      stretch_(stretch),
      reach_(automaton_, stretch),
      likeliest_(canvas.temperature == 0),
      blocks_(logit_blocks(automaton_.vocab())),
      stride_(ptrdiff_t{kLogitBlock} * logit_blocks(static_cast<int>(automaton_.all_tokens().size()))),
      asked_(sampling_of(canvas)),
      drawn_(of_changed_logits(asked_)),
      given_(of_changed_logits(asked_)),
      state_(stretch.state),
      row_(stretch.tokens.size(), -1),
      open_(automaton_.bundles()),
      open_log_(likeliest_ ? automaton_.bundles() : 0),
      after_(reach_.size()),
      best_(likeliest_ ? reach_.size() : 0),
      ahead_(automaton_.states()),
      best_ahead_(likeliest_ ? automaton_.states() : 0, kNever),
      before_(automaton_.states()),
      next_(automaton_.states()),
      through_(automaton_.bundles()),
      of_kind_(automaton_.classes()),
      choice_(automaton_) {
  given_.temperature = 0;
  given_.scores_sampled = false;
  for (int row = 0; row < canvas.n_score; row++) row_[canvas.score[row] - canvas.match_first] = row;
  memory_ = take_scratch([&](void* base) {
    Arena arena(base);
    choice_.lay_out(&arena, blocks_);
    logits_ = arena.take<float>(blocks_, kLogitBlock);
    scratch_ = {arena.take<float>(blocks_, kLogitBlock), arena.take<float>(blocks_), arena.take<float>(blocks_)};
    x_ = arena.take<float>(canvas.n_score, stride_);
    sums_ = arena.take<double>(canvas.n_score, automaton_.bundles());
    bests_ = arena.take<double>(canvas.n_score, automaton_.bundles());
    return arena.used();
  });
}

// The logits of a row by class, and what they come to in each bundle.
void Lattice::read(int row, const ld_canvas* companion) {
  const int vocab = automaton_.vocab(), classes = automaton_.classes(), bundles = automaton_.bundles();
  std::copy_n(canvas_.logits + ptrdiff_t{row} * vocab, vocab, logits_);
  std::fill(logits_ + vocab, logits_ + blocks_ * kLogitBlock, kAbsent);
  if (companion) guide(asked_.guidance, companion->logits + ptrdiff_t{row} * vocab, vocab, logits_);
  adjust(asked_, logits_);
  if (!kernels_.scan(logits_, blocks_, scratch_.block_max)) refuse_non_finite(results(row, &asked_));

  const auto tokens = automaton_.all_tokens();
  float* x = x_ + row * stride_;
  for (size_t i = 0; i < tokens.size(); i++) x[i] = logits_[tokens[i]];
  std::fill(x + tokens.size(), x + stride_, kAbsent);
  const int blocks = static_cast<int>(stride_ / kLogitBlock);
  kernels_.scan(x, blocks, scratch_.block_max);
  const float most = largest(scratch_.block_max, blocks);
  float* e = scratch_.e;
  kernels_.exponentials(x, blocks, most, 1, e, scratch_.block_sum);
  for (int kind = 0; kind < classes; kind++)
    of_kind_[kind] = sum(e + automaton_.first_token(kind), automaton_.tokens(kind).size()) + kLeastWeight;
  for (int b = 0; b < bundles; b++) {
    sums(row)[b] = 0;
    for (const int32_t kind : automaton_.kinds(b)) sums(row)[b] += of_kind_[kind];
  }
  if (!likeliest_) return;
  for (int kind = 0; kind < classes; kind++)
    of_kind_[kind] = largest(of_class(row, kind), automaton_.tokens(kind).size()) - most;
  for (int b = 0; b < bundles; b++) {
    bests(row)[b] = kNever;
    for (const int32_t kind : automaton_.kinds(b)) bests(row)[b] = std::max(bests(row)[b], of_kind_[kind]);
  }
}

// What the tokens of each bundle weigh at a place: 1 or 0 where it is not scored.
const double* Lattice::weights(int place) {
  if (row_[place] >= 0) return sums(row_[place]);
  automaton_.open(stretch_.tokens[place], &open_);
  return open_.data();
}

// The logarithm of the likeliest token of each bundle at a place: 0 or kNever where it is not scored.
const double* Lattice::best_weights(int place) {
  if (row_[place] >= 0) return bests(row_[place]);
  for (size_t b = 0; b < open_.size(); b++) open_log_[b] = open_[b] > 0 ? 0 : kNever;
  return open_log_.data();
}

// Fills ahead_ and best_ahead_ for the states of a place, where those of no other stand in them.
void Lattice::look_ahead(int place) {
  const auto states = reach_.at(place);
  for (size_t i = 0; i < states.size(); i++) {
    ahead_[states[i]] = after_[reach_.first(place) + i];
    if (likeliest_) best_ahead_[states[i]] = best_[reach_.first(place) + i];
  }
}

// Empties them.
void Lattice::look_away(int place) {
  for (const int32_t state : reach_.at(place)) {
    ahead_[state] = 0;
    if (likeliest_) best_ahead_[state] = kNever;
  }
}

// Fills after_ and best_ from the last place to the first.
void Lattice::sweep_back() {
  const int length = static_cast<int>(row_.size());
  std::fill(after_.begin() + static_cast<ptrdiff_t>(reach_.first(length)), after_.end(), 1);
  for (int place = length - 1; place >= 0; place--) {
    look_ahead(place + 1);
    const auto states = reach_.at(place);
    double* after = after_.data() + reach_.first(place);
    const double* weight = weights(place);
    const double* log = likeliest_ ? best_weights(place) : nullptr;
    const bool free = row_[place] < 0 && stretch_.tokens[place] < 0;
    double most = 0;
    for (size_t i = 0; i < states.size(); i++) {
      double value = 0, likeliest = kNever;
      for (const Arc arc : automaton_.arcs(states[i])) {
        const double each = weight[arc.bundle] * ahead_[arc.target];
        value = free ? larger(value, each) : value + each;
        if (log) likeliest = larger(likeliest, log[arc.bundle] + best_ahead_[arc.target]);
      }
      after[i] = value;
      if (log) best_[reach_.first(place) + i] = likeliest;
      most = larger(most, value);
    }
    for (size_t i = 0; i < states.size(); i++) after[i] = scaled(after[i], most);
    look_away(place + 1);
  }
}

// Fills next_ and through_ from before_.
void Lattice::spread(int place, const double* weight) {
  std::fill(through_.begin(), through_.end(), 0);
  for (const int32_t state : reach_.at(place)) {
    const double here = before_[state];
    if (here == 0) continue;
    for (const Arc arc : automaton_.arcs(state)) {
      through_[arc.bundle] += here * ahead_[arc.target];
      next_[arc.target] += here * weight[arc.bundle];
    }
  }
}

// The probability given a match that the text comes to the state in which the walk is.
double Lattice::share_of_state(int place) const {
  const auto states = reach_.at(place);
  double all = 0, own = 0;
  for (size_t i = 0; i < states.size(); i++) {
    const double both = before_[states[i]] * after_[reach_.first(place) + i];
    all += both;
    if (states[i] == state_) own = both;
  }
  return std::max(own / all, kLeast);
}

// Makes the next place this one.
void Lattice::pass(int place) {
  for (const int32_t state : reach_.at(place)) before_[state] = 0;
  double most = 0;
  for (const int32_t state : reach_.at(place + 1)) most = std::max(most, ahead_[state] > 0 ? next_[state] : 0);
  for (const int32_t state : reach_.at(place + 1)) {
    before_[state] = ahead_[state] > 0 ? scaled(next_[state], most) : 0;
    next_[state] = 0;
  }
  look_away(place + 1);
}

// From the walk's state the arc to the largest of `ahead`, with `more` where given, among those that are open.
Arc Lattice::best_arc(const double* open, const double* more, const std::vector<double>& ahead) const {
  Arc best{};
  double most = kNever;
  bool found = false;
  for (const Arc arc : automaton_.arcs(state_)) {
    if (open[arc.bundle] == 0 || ahead_[arc.target] == 0) continue;
    const double value = ahead[arc.target] + (more ? more[arc.bundle] : 0);
    if (found && value <= most) continue;
    best = arc;
    most = value;
    found = true;
  }
  return best;
}

int32_t Lattice::likeliest_of(int bundle, int row) const {
  const auto kinds = automaton_.kinds(bundle);
  const auto most_of = [&](int kind) { return largest(of_class(row, kind), automaton_.tokens(kind).size()); };
  int best = kinds[0];
  float most = most_of(best);
  for (const int32_t kind : kinds.subspan(1)) {
    const float value = most_of(kind);
    if (value <= most) continue;
    best = kind;
    most = value;
  }
  const float* x = of_class(row, best);
  return automaton_.tokens(best)[std::find(x, x + automaton_.tokens(best).size() - 1, most) - x];
}

// A token that may follow in the walk's state, drawn; with its scores times `here` where they are of what it is drawn
// from. Returns the state that it leads to.
int Lattice::draw(int row, double here, int32_t* token) {
  choice_.clear();
  for (const Arc arc : automaton_.arcs(state_)) {
    if (ahead_[arc.target] == 0) continue;
    const double more = std::log(ahead_[arc.target]);
    for (const int32_t kind : automaton_.kinds(arc.bundle)) choice_.add(kind, of_class(row, kind), more, arc.target);
  }
  const ScoreRow all = results(row, &drawn_);
  ScoreRow asked{};
  if (asked_.scores_sampled) asked = all;
  asked.position = all.position;
  asked.sampling = &drawn_;
  asked.token = token;
  const int target = choice_.score(kernels_, asked);
  if (!asked_.scores_sampled) return target;
  if (all.token) *all.token = *token;
  if (all.probability) *all.probability *= static_cast<float>(here);
  if (all.margin) *all.margin *= static_cast<float>(here);
  if (all.entropy) *all.entropy -= static_cast<float>(std::log(here));
  for (int i = 0; all.alternative_probability && i < drawn_.alternatives; i++)
    all.alternative_probability[i] *= static_cast<float>(here);
  return target;
}

// The scores of a token given that the text matches.
void Lattice::score_given_match(int row, int32_t token) {
  std::fill(of_kind_.begin(), of_kind_.end(), 0);
  for (int b = 0; b < automaton_.bundles(); b++) {
    if (through_[b] == 0) continue;
    for (const int32_t kind : automaton_.kinds(b)) of_kind_[kind] += through_[b];
  }
  choice_.clear();
  for (int kind = 0; kind < automaton_.classes(); kind++)
    if (of_kind_[kind] > 0) choice_.add(kind, of_class(row, kind), std::log(of_kind_[kind]));
  ScoreRow asked = results(row, &given_);
  asked.wanted = choice_.place_of(token);
  choice_.score(kernels_, asked);
}

void Lattice::propose(const ld_canvas* companion) {
  for (int row = 0; row < canvas_.n_score; row++) read(row, companion);
  sweep_back();
  before_[state_] = 1;
  for (int place = 0; place < static_cast<int>(row_.size()); place++) {
    look_ahead(place + 1);
    const double* weight = weights(place);
    spread(place, weight);
    const int row = row_[place];
    if (row < 0) {
      state_ = best_arc(weight, nullptr, likeliest_ ? best_ahead_ : ahead_).target;
    } else if (likeliest_) {
      const Arc arc = best_arc(weight, bests(row), best_ahead_);
      state_ = arc.target;
      score_given_match(row, likeliest_of(arc.bundle, row));
    } else {
      int32_t token;
      state_ = draw(row, share_of_state(place), &token);
      if (!asked_.scores_sampled) score_given_match(row, token);
    }
    pass(place);
  }
}

}  // namespace

void check_match(const ld_canvas& canvas, int index, int vocab) {
  if (canvas.automaton == nullptr) return;
  const auto expect = [&](bool good, const char* what) {
    if (!good) throw Error(LD_INVALID, text("canvas %d: %s", index, what));
  };
  expect(canvas.automaton->automaton.vocab() == vocab, "its automaton is of another vocabulary");
  expect(canvas.n_forbidden == 0 && canvas.allowed == nullptr, "an automaton excludes forbidden and allowed");
  expect(canvas.match_first >= 0 && canvas.n_match >= 0, "match_first or n_match is negative");
  canvas.automaton->automaton.stretch(canvas.match_state, canvas.match_token, canvas.n_match, canvas.match_left);
  for (int row = 0; row < canvas.n_score; row++) {
    const int64_t place = int64_t{canvas.score[row]} - canvas.match_first;
    expect(place >= 0 && place < canvas.n_match, "a scored position is not among those that must match");
    expect(canvas.match_token[place] < 0, "a token stands at a scored position");
  }
}

void propose_match(const VectorKernels& kernels, const ld_canvas& canvas, const ld_canvas* companion, int index) {
  const Stretch stretch =
      canvas.automaton->automaton.stretch(canvas.match_state, canvas.match_token, canvas.n_match, canvas.match_left);
  Lattice lattice(kernels, canvas, stretch);
  if (!lattice.possible())
    throw Error(LD_INVALID, text("canvas %d: no text that its automaton accepts is left", index));
  lattice.propose(companion);
}

}  // namespace ld
