// A finite automaton over the tokens of a vocabulary, as a caller gives it, and the states that a text can be in.
//
// Tokens that do the same in every state are a class. Classes that lead from one state to the same other one are a
// bundle, and many pairs of states share theirs, so a state has arcs for bundles: a third of its edges for classes.
// Immutable. Not here: probabilities (lattice.h), how automata are made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "localdiff.h"

namespace ld {

struct Arc {
  int32_t target, bundle;
};

// A text that goes on from a state over what stands at some places.
struct Stretch {
  int32_t state;
  std::span<const int32_t> tokens;  // -1 where any may stand
  int32_t left;                     // places behind, of which the text may use any number
};

class Automaton {
 public:
  // Copies a table. Throws Error(LD_INVALID) where an index is out of range.
  explicit Automaton(const ld_automaton_table& table);

  int vocab() const { return static_cast<int>(class_of_.size()); }
  int states() const { return static_cast<int>(distance_.size()); }
  int classes() const { return static_cast<int>(first_token_.size()) - 1; }
  int bundles() const { return static_cast<int>(first_kind_.size()) - 1; }

  std::span<const Arc> arcs(int state) const { return part(arcs_, first_arc_, state); }
  std::span<const int32_t> kinds(int bundle) const { return part(kinds_, first_kind_, bundle); }
  std::span<const int32_t> tokens(int kind) const { return part(tokens_, first_token_, kind); }
  std::span<const int32_t> all_tokens() const { return tokens_; }  // by class
  int first_token(int kind) const { return first_token_[kind]; }   // where a class begins among them
  int class_of(int token) const { return class_of_[token]; }
  int distance(int state) const { return distance_[state]; }  // fewest tokens to the end of a text
  // The stretch of these arguments. Throws Error(LD_INVALID) where one is out of range.
  Stretch stretch(int32_t state, const int32_t* tokens, int32_t length, int32_t left) const;

  // [bundles] 1 for those in which `token` is, else 0; all 1 for -1.
  void open(int token, std::vector<double>* bundles) const;

 private:
  template <class T>
  static std::span<const T> part(const std::vector<T>& all, const std::vector<int32_t>& first, int index) {
    return {all.data() + first[index], static_cast<size_t>(first[index + 1] - first[index])};
  }
  std::vector<int32_t> class_of_;              // [vocab], classes() where a token has none
  std::vector<int32_t> distance_;              // [states]
  std::vector<int32_t> first_arc_;             // [states + 1]
  std::vector<Arc> arcs_;                      // by state, then target
  std::vector<int32_t> first_kind_, kinds_;    // [bundles + 1], their classes
  std::vector<int32_t> first_token_, tokens_;  // [classes + 1], their tokens
};

// The states that a text can be in before each place of a stretch, and after the last.
class Reach {
 public:
  Reach(const Automaton& automaton, const Stretch& stretch);

  bool possible() const { return first_.back() > first_[first_.size() - 2]; }
  size_t first(int place) const { return first_[place]; }  // where those of a place begin among all
  size_t size() const { return states_.size(); }
  std::span<const int32_t> at(int place) const {
    return {states_.data() + first_[place], first_[place + 1] - first_[place]};
  }

 private:
  std::vector<int32_t> states_;
  std::vector<size_t> first_;  // [places + 2]
};

}  // namespace ld

struct ld_automaton {
  ld::Automaton automaton;
};
