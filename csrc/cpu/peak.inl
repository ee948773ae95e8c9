// The loops around a row's instructions. Included by peak_<row>.cpp, which defines
//   Wide, Floats                  vector types
//   kAccumulators                 enough to hide the latency, few enough for the registers
//   int8_step(Wide& sum, Wide& a, Wide b), f32_step(Floats& sum, Floats& a, Floats b)
//   kInt8Operations, kF32Operations   of one step

template <class Vector>
uint64_t fold(const Vector* values, int n) {
  uint64_t words[sizeof(Vector) / 8], sum = 0;
  for (int i = 0; i < n; ++i) {
    memcpy(words, values + i, sizeof words);
    for (uint64_t word : words) sum ^= word;
  }
  return sum;
}

// The start values come from memory: were they known, equal accumulators would be merged and constant ones dropped.
template <class Vector, class Step>
uint64_t burst(const void* source, int rounds, Step step) {
  Vector values[kAccumulators + 2];
  memcpy(values, source, sizeof values);
  Vector a = values[kAccumulators], b = values[kAccumulators + 1];
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) step(values[i], a, b);
  }
  return fold(values, kAccumulators);
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
  return fold(sums, kStreams);
}
