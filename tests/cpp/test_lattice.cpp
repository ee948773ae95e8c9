// Texts that must match, through the C interface: random automata against all texts counted out, stretches in which some
// tokens are known, and thousands of damaged tables and canvases, which must be refused or answered within bounds (the
// sanitizers run this too). What decoders make of it is tests/test_constrain.py's.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <utility>

#include "localdiff.h"
#include "scored.h"
#include "test.h"

using namespace ld;
using namespace ld::test;

namespace {

constexpr int kVocab = 7, kFar = 1 << 30;

struct Table {
  std::vector<int32_t> class_of, first, kind, target, distance;
  int32_t states = 0, classes = 0;

  ld_automaton_table c() const {
    ld_automaton_table table{};
    table.struct_size = sizeof table;
    table.vocab = static_cast<int32_t>(class_of.size());
    table.states = states;
    table.classes = classes;
    table.class_of = class_of.data();
    table.first = first.data();
    table.kind = kind.data();
    table.target = target.data();
    table.distance = distance.data();
    return table;
  }
  int step(int state, int token) const {
    for (int e = first[state]; e < first[state + 1]; e++)
      if (kind[e] == class_of[token]) return target[e];
    return -1;
  }
};

Table random_table(std::mt19937* random) {
  const auto below = [&](int n) { return static_cast<int>((*random)() % n); };
  Table table;
  table.states = 2 + below(4);
  table.classes = 2 + below(3);
  for (int token = 0; token < kVocab; token++)
    table.class_of.push_back(token < table.classes ? token : below(table.classes + 1));
  table.first = {0};
  for (int s = 0; s < table.states; s++) {
    for (int kind = 0; kind < table.classes; kind++) {
      if (below(3) == 0) continue;
      table.kind.push_back(kind);
      table.target.push_back(below(table.states));
    }
    table.first.push_back(static_cast<int32_t>(table.kind.size()));
  }
  table.distance.assign(table.states, kFar);
  table.distance[below(table.states)] = 0;
  for (int round = 0; round < table.states; round++)
    for (int s = 0; s < table.states; s++)
      for (int e = table.first[s]; e < table.first[s + 1]; e++)
        table.distance[s] = std::min(table.distance[s], table.distance[table.target[e]] + 1);
  return table;
}

struct Automaton {
  explicit Automaton(const Table& table) {
    const ld_automaton_table c = table.c();
    REQUIRE(ld_automaton_create(&c, &handle) == LD_OK);
  }
  ~Automaton() { ld_automaton_free(handle); }
  ld_automaton* handle = nullptr;
};

using Text = std::vector<int32_t>;

// Every text over a stretch that ends where the automaton may end; without places that are neither known nor scored.
void all_texts(const Table& table, int state, const Text& known, Text* made, std::vector<Text>* found) {
  const size_t place = made->size();
  if (place == known.size()) {
    if (table.distance[state] == 0) found->push_back(*made);
    return;
  }
  for (int token = 0; token < kVocab; token++) {
    const int next = known[place] >= 0 && known[place] != token ? -1 : table.step(state, token);
    if (next < 0) continue;
    made->push_back(token);
    all_texts(table, next, known, made, found);
    made->pop_back();
  }
}

struct Canvas {
  Canvas(const Automaton& automaton, const Text& known, unsigned seed) : known(known) {
    for (size_t place = 0; place < known.size(); place++)
      if (known[place] < 0) score.push_back(static_cast<int32_t>(place) + 2);
    const size_t n = score.size();
    logits = random_floats(n * kVocab, seed, 2);
    token.resize(n), probability.resize(n), margin.resize(n), entropy.resize(n);
    alternative_token.resize(2 * n), alternative_probability.resize(2 * n);
    c.struct_size = sizeof c;
    c.length = static_cast<int32_t>(known.size()) + 2;
    c.score = score.data();
    c.n_score = static_cast<int32_t>(n);
    c.alternatives = 2;
    c.logits = logits.data();
    c.token = token.data();
    c.probability = probability.data();
    c.margin = margin.data();
    c.entropy = entropy.data();
    c.alternative_token = alternative_token.data();
    c.alternative_probability = alternative_probability.data();
    c.automaton = automaton.handle;
    c.match_token = this->known.data();
    c.match_first = 2;
    c.n_match = static_cast<int32_t>(known.size());
  }
  double weight(const Text& text) const {
    double sum = 0;
    for (size_t row = 0; row < score.size(); row++) sum += logits[row * kVocab + text[score[row] - 2]];
    return std::exp(sum);
  }
  Text known;
  std::vector<int32_t> score, token, alternative_token;
  std::vector<float> logits, probability, margin, entropy, alternative_probability;
  ld_canvas c{};
};

}  // namespace

TEST(the_likeliest_text_and_its_scores_are_those_of_all_texts) {
  std::mt19937 random(3);
  int compared = 0;
  for (int round = 0; round < 400; round++) {
    const Table table = random_table(&random);
    const Automaton automaton(table);
    Text known(1 + random() % 4, -1), made;
    if (random() % 2) known[random() % known.size()] = static_cast<int32_t>(random() % kVocab);
    std::vector<Text> texts;
    all_texts(table, 0, known, &made, &texts);
    int32_t fits = -1;
    const auto length = static_cast<int32_t>(known.size());
    REQUIRE(ld_automaton_fits(automaton.handle, 0, known.data(), length, 0, &fits) == LD_OK);
    CHECK_EQ(fits, texts.empty() ? 0 : 1);
    Canvas canvas(automaton, known, round);
    const ld_status status = ld_logits_propose(kVocab, &canvas.c, 1);
    if (texts.empty()) {
      CHECK_EQ(status, LD_INVALID);
      continue;
    }
    REQUIRE(status == LD_OK);
    compared++;
    double total = 0, most = 0;
    std::vector<std::vector<double>> shares(canvas.score.size(), std::vector<double>(kVocab));
    for (const Text& text : texts) total += canvas.weight(text), most = std::max(most, canvas.weight(text));
    Text chosen = known;
    for (size_t row = 0; row < canvas.score.size(); row++) chosen[canvas.score[row] - 2] = canvas.token[row];
    CHECK(std::find(texts.begin(), texts.end(), chosen) != texts.end());
    CHECK(canvas.weight(chosen) > most * 0.9999);
    for (const Text& text : texts)
      for (size_t row = 0; row < shares.size(); row++)
        shares[row][text[canvas.score[row] - 2]] += canvas.weight(text) / total;
    for (size_t row = 0; row < shares.size(); row++) {
      std::vector<double> ranked = shares[row];
      std::sort(ranked.rbegin(), ranked.rend());
      double entropy = 0;
      for (const double share : ranked) entropy -= share > 0 ? share * std::log(share) : 0;
      CHECK(std::fabs(canvas.probability[row] - shares[row][canvas.token[row]]) < 1e-4);
      CHECK(std::fabs(canvas.margin[row] - (ranked[0] - ranked[1])) < 1e-4);
      CHECK(std::fabs(canvas.entropy[row] - entropy) < 1e-3);
      CHECK(std::fabs(canvas.alternative_probability[2 * row + 1] - ranked[1]) < 1e-4);
    }
  }
  CHECK(compared > 100);
}

TEST(drawn_texts_match_and_come_as_often_as_they_should) {
  std::mt19937 random(8);
  for (int round = 0; round < 6; round++) {
    const Table table = random_table(&random);
    const Automaton automaton(table);
    const Text known(3, -1);
    std::vector<Text> texts;
    Text made;
    all_texts(table, 0, known, &made, &texts);
    if (texts.empty()) continue;
    Canvas canvas(automaton, known, round);
    std::map<Text, double> wanted;
    double total = 0;
    for (const Text& text : texts) total += canvas.weight(text);
    for (const Text& text : texts) wanted[text] = canvas.weight(text) / total;
    std::map<Text, int> counts;
    canvas.c.temperature = 1;
    canvas.c.scores_from = round % 2 ? LD_SCORE_SAMPLED : LD_SCORE_RAW;
    constexpr int kDraws = 4000;
    for (int step = 0; step < kDraws; step++) {
      canvas.c.step = step;
      REQUIRE(ld_logits_propose(kVocab, &canvas.c, 1) == LD_OK);
      counts[canvas.token]++;
    }
    for (const auto& [text, count] : counts) CHECK(wanted.count(text) == 1);
    for (const auto& [text, share] : wanted)
      CHECK(std::fabs(counts[text] / double{kDraws} - share) < 4 * std::sqrt(share * (1 - share) / kDraws) + 1e-3);
  }
}

TEST(damaged_tables_and_canvases_stay_within_bounds) {
  std::mt19937 random(11);
  const int32_t odd[] = {-1, 0, 1, 2, kVocab, 1000, INT32_MAX, INT32_MIN};
  int refused = 0, answered = 0;
  const char* asked = getenv("LOCALDIFF_FUZZ");
  const int rounds = asked == nullptr ? 4000 : atoi(asked);
  for (int round = 0; round < rounds; round++) {
    Table table = random_table(&random);
    std::vector<int32_t>* arrays[] = {&table.class_of, &table.first, &table.kind, &table.target, &table.distance};
    const auto damage = [&](int32_t* value) { *value = odd[random() % std::size(odd)]; };
    std::vector<int32_t>& array = *arrays[random() % std::size(arrays)];
    // first says how long kind and target are, which no library can check: its last value stays
    const size_t values = &array == &table.first ? array.size() - 1 : array.size();
    if (values > 0 && random() % 2) damage(&array[random() % values]);
    const ld_automaton_table c = table.c();
    ld_automaton* made = nullptr;
    if (ld_automaton_create(&c, &made) != LD_OK) {
      refused++;
      continue;
    }
    Table good = random_table(&random);
    Automaton automaton(good);
    std::swap(automaton.handle, made);
    ld_automaton_free(made);
    Canvas canvas(automaton, Text(1 + random() % 3, -1), round);
    int32_t* fields[] = {&canvas.c.match_first, &canvas.c.match_state, &canvas.c.match_left, &canvas.known[0],
                         &canvas.score[0]};
    if (random() % 2) damage(fields[random() % std::size(fields)]);
    if (random() % 8 == 0) canvas.c.match_token = nullptr;
    int32_t state = 0, length = static_cast<int32_t>(canvas.known.size()), left = 0, fits;
    int32_t* asked_for[] = {&state, &length, &left};
    const int which = static_cast<int>(random() % 4);
    if (which < 3) damage(asked_for[which]);
    if (length <= static_cast<int32_t>(canvas.known.size()))  // how many there are no library can check
      (void)ld_automaton_fits(automaton.handle, state, canvas.known.data(), length, left, &fits);
    (ld_logits_propose(kVocab, &canvas.c, 1) == LD_OK ? answered : refused)++;
  }
  CHECK(refused > 500);
  CHECK(answered > 500);
}

TEST(what_is_missing_is_refused) {
  std::mt19937 random(5);
  const Table table = random_table(&random);
  ld_automaton_table c = table.c();
  ld_automaton* made = nullptr;
  CHECK_EQ(ld_automaton_create(nullptr, &made), LD_INVALID);
  CHECK_EQ(ld_automaton_create(&c, nullptr), LD_INVALID);
  for (const int32_t** field : {&c.class_of, &c.first, &c.kind, &c.target, &c.distance}) {
    const int32_t* kept = std::exchange(*field, nullptr);
    CHECK_EQ(ld_automaton_create(&c, &made), LD_INVALID);
    *field = kept;
  }
  int32_t fits;
  const Automaton automaton(table);
  CHECK_EQ(ld_automaton_fits(nullptr, 0, nullptr, 0, 0, &fits), LD_INVALID);
  CHECK_EQ(ld_automaton_fits(automaton.handle, 0, nullptr, 1, 0, &fits), LD_INVALID);
  CHECK_EQ(ld_automaton_fits(automaton.handle, 0, nullptr, 0, 0, nullptr), LD_INVALID);
  ld_automaton_free(nullptr);
}
