#include "automaton.h"

#include <algorithm>
#include <map>

#include "error.h"

namespace ld {
namespace {

void require(bool good, const char* what) {
  if (!good) throw Error(LD_INVALID, text("automaton: %s", what));
}

void check_indices(const char* name, const int32_t* values, int count, int low, int limit) {
  for (int i = 0; i < count; i++)
    if (values[i] < low || values[i] >= limit)
      throw Error(LD_INVALID, text("automaton: %s[%d] is %d, expected %d to %d", name, i, values[i], low, limit - 1));
}

}  // namespace

Automaton::Automaton(const ld_automaton_table& table) {
  require(table.vocab >= 1 && table.vocab < 1 << 28, "vocab must be 1 to 268435455");
  require(table.states >= 1 && table.states < 1 << 28, "states must be 1 to 268435455");
  require(table.classes >= 0 && table.classes <= table.vocab, "classes must be 0 to vocab");
  require(table.first && table.class_of && table.distance, "first, class_of or distance is NULL");
  require(table.first[0] == 0, "first[0] must be 0");
  for (int s = 0; s < table.states; s++) require(table.first[s] <= table.first[s + 1], "first must not descend");
  const int edges = table.first[table.states];
  require(edges == 0 || (table.kind && table.target), "kind or target is NULL");
  check_indices("kind", table.kind, edges, 0, table.classes);
  check_indices("target", table.target, edges, 0, table.states);
  check_indices("class_of", table.class_of, table.vocab, 0, table.classes + 1);
  check_indices("distance", table.distance, table.states, 0, INT32_MAX);
  class_of_.assign(table.class_of, table.class_of + table.vocab);
  distance_.assign(table.distance, table.distance + table.states);

  first_token_.assign(table.classes + 1, 0);
  for (const int32_t kind : class_of_)
    if (kind < table.classes) first_token_[kind + 1]++;
  for (int kind = 0; kind < table.classes; kind++) {
    require(first_token_[kind + 1] > 0, "a class has no token");
    first_token_[kind + 1] += first_token_[kind];
  }
  tokens_.resize(first_token_.back());
  std::vector<int32_t> next(first_token_.begin(), first_token_.end() - 1);
  for (int token = 0; token < table.vocab; token++)
    if (class_of_[token] < table.classes) tokens_[next[class_of_[token]]++] = token;

  std::map<std::vector<int32_t>, int32_t> known;
  std::vector<std::pair<int32_t, int32_t>> edge;  // target, class
  std::vector<int32_t> kinds;
  first_kind_.push_back(0);
  for (int s = 0; s < table.states; s++) {
    first_arc_.push_back(static_cast<int32_t>(arcs_.size()));
    edge.clear();
    for (int e = table.first[s]; e < table.first[s + 1]; e++) {
      require(e == table.first[s] || table.kind[e] > table.kind[e - 1], "the classes of a state must ascend");
      edge.push_back({table.target[e], table.kind[e]});
    }
    std::sort(edge.begin(), edge.end());
    for (size_t e = 0; e < edge.size();) {
      const int32_t target = edge[e].first;
      kinds.clear();
      for (; e < edge.size() && edge[e].first == target; e++) kinds.push_back(edge[e].second);
      const auto [at, added] = known.try_emplace(kinds, static_cast<int32_t>(known.size()));
      if (added) {
        kinds_.insert(kinds_.end(), kinds.begin(), kinds.end());
        first_kind_.push_back(static_cast<int32_t>(kinds_.size()));
      }
      arcs_.push_back({target, at->second});
    }
  }
  first_arc_.push_back(static_cast<int32_t>(arcs_.size()));
}

Stretch Automaton::stretch(int32_t state, const int32_t* tokens, int32_t length, int32_t left) const {
  require(state >= 0 && state < states(), "the state of a text is none of its states");
  require(length >= 0 && left >= 0, "a stretch has a negative length");
  require(length == 0 || tokens != nullptr, "the tokens of a stretch are NULL");
  check_indices("tokens", tokens, length, -1, vocab());
  return {state, {tokens, static_cast<size_t>(length)}, left};
}

void Automaton::open(int token, std::vector<double>* bundles) const {
  for (int b = 0; b < this->bundles(); b++) {
    const auto inside = kinds(b);
    (*bundles)[b] = token < 0 || std::binary_search(inside.begin(), inside.end(), class_of_[token]) ? 1 : 0;
  }
}

Reach::Reach(const Automaton& automaton, const Stretch& stretch) : states_{stretch.state}, first_{0, 1} {
  const int length = static_cast<int>(stretch.tokens.size());
  std::vector<int32_t> seen(automaton.states(), -1);  // the last place before which each state was found
  std::vector<double> open(automaton.bundles(), 1);
  for (int place = 0; place < length; place++) {
    const int token = stretch.tokens[place];
    if (token >= 0 || (place > 0 && stretch.tokens[place - 1] >= 0)) automaton.open(token, &open);
    const int64_t room = int64_t{length} - place - 1 + stretch.left;
    for (size_t p = first_[place]; p < first_[place + 1]; p++) {
      for (const Arc arc : automaton.arcs(states_[p])) {
        if (seen[arc.target] == place || open[arc.bundle] == 0 || automaton.distance(arc.target) > room) continue;
        seen[arc.target] = place;
        states_.push_back(arc.target);
      }
    }
    first_.push_back(states_.size());
  }
  if (length == 0 && automaton.distance(stretch.state) > stretch.left) first_[1] = 0;
}

}  // namespace ld
