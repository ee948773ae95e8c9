// The loops around a row's instructions. Included by peak_<row>.cpp, which defines
//   Wide, Floats                  vector types
//   kAccumulators                 enough to hide the latency, few enough for the registers
//   int8_step(Wide& sum, Wide& a, Wide b), f32_step(Floats& sum, Floats& a, Floats b)
//   kInt8Operations, kF32Operations   of one step

uint64_t fold(const Wide& value) {
  uint64_t words[sizeof value / 8], sum = 0;
  memcpy(words, &value, sizeof value);
  for (uint64_t word : words) sum ^= word;
  return sum;
}

// The start values come from memory: were they known, equal accumulators would be merged and constant ones dropped.
// They are read and folded one by one: GCC keeps an array that is ever addressed as a whole in memory, in the loop too.
template <class Vector, class Step>
uint64_t burst(const void* source, int rounds, Step step) {
  static_assert(sizeof(Vector) == sizeof(Wide));
  const auto read = [source](Vector& value, int index) {
    memcpy(&value, static_cast<const char*>(source) + index * sizeof(Vector), sizeof(Vector));
  };
  Vector values[kAccumulators], a, b;
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; ++i) read(values[i], i);
  read(a, kAccumulators);
  read(b, kAccumulators + 1);
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) step(values[i], a, b);
  }
  Wide all{};
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; ++i) all ^= (Wide)values[i];
  return fold(all);
}

uint64_t int8_burst(const void* source, int rounds) { return burst<Wide>(source, rounds, int8_step); }

uint64_t f32_burst(const void* source, int rounds) { return burst<Floats>(source, rounds, f32_step); }

uint64_t read_burst(const void* from, size_t bytes) {
  constexpr int kStreams = 256 / sizeof(Wide);
  Wide sums[kStreams] = {};
  const Wide* at = static_cast<const Wide*>(from);
  for (const Wide* end = at + bytes / sizeof(Wide); at != end; at += kStreams) {
#pragma GCC unroll 16
    for (int i = 0; i < kStreams; ++i) sums[i] ^= at[i];
  }
  Wide all{};
#pragma GCC unroll 16
  for (int i = 0; i < kStreams; ++i) all ^= sums[i];
  return fold(all);
}
