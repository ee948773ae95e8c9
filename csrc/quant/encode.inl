// The encoders, one per block format, and the table of them. encode_<isa>.cpp includes this once in an anonymous
// namespace inside ld::quant. Each takes any number of whole blocks, sixteen groups at a time, and fills the unused
// lanes of the last ones with zeros; lanes do not meet except within a super-block, so the bytes of a block depend on
// its values and weights alone.
//
// The layouts are those of simple.cpp, kquants.cpp, kquants_low.cpp and codebook.cpp, which read what is written here.

constexpr float kHalfMax = 65504.0f;

#include "encode_fit.inl"
#include "encode_super.inl"

constexpr size_t kSuperBlock = 256, kBlock = 32;

// Groups `first` to `first + count` of x, N values each. weights[columns] repeat from row to row.
template <int N>
void load_groups(const Source& source, size_t first, int count, Groups<N>* g) {
  for (int i = 0; i < N; ++i) {
    g->x[i] = V{};
    g->w[i] = broadcast(1);
  }
  for (int lane = 0; lane < count; ++lane) {
    const size_t at = (first + lane) * N;
    const float* x = source.values + at;
    const float* w = source.weights + at % source.columns;
    for (int i = 0; i < N; ++i) {
      g->x[i][lane] = x[i];
      g->w[i][lane] = w[i];
    }
  }
}

// Errors of large values cost more than their squares say, because cutting them off moves what a row computes in one
// direction. Weights that grow with |x| / rms give back some of what the search gains in squared error, and real
// models' answers change less (measured by KL). Not for 8 bits, where nothing is cut off.
template <int N>
LD_INLINE void emphasise_large(Groups<N>* g) {
  V square = {}, rms;
  for (int i = 0; i < N; ++i) square += g->x[i] * g->x[i];
  for (int lane = 0; lane < kLanes; ++lane) rms[lane] = __builtin_sqrtf(square[lane] * (1.0f / N));
  const V inverse_rms = inverse(rms);
  for (int i = 0; i < N; ++i) g->w[i] *= 1.0f + magnitude(g->x[i]) * inverse_rms;
}

// Calls batch(first group, groups in it, lanes) for all groups of N values.
template <int N, bool kEmphasis = true, class Batch>
LD_INLINE void for_batches(const Source& source, Batch batch) {
  Groups<N> g;
  const size_t groups = source.count / N;
  for (size_t first = 0; first < groups; first += kLanes) {
    const int count = groups - first < kLanes ? static_cast<int>(groups - first) : kLanes;
    load_groups(source, first, count, &g);
    if (kEmphasis) emphasise_large(&g);
    batch(first, count, g);
  }
}

// Codes of a batch, group after group.
template <int N>
struct Codes {
  uint8_t of[kLanes][N];
  void set(int i, V code) {
    for (int lane = 0; lane < kLanes; ++lane) of[lane][i] = static_cast<uint8_t>(static_cast<int>(code[lane]));
  }
};

LD_INLINE void store_half(uint8_t* at, float value) {
  const uint16_t half = float_to_half(value);
  memcpy(at, &half, sizeof half);
}

// ---- blocks of 32 ----

// Value i in the low four bits of byte i, i + 16 in the high four.
LD_INLINE void pack_nibbles(const uint8_t* codes, uint8_t* out) {
  for (size_t i = 0; i < kBlock / 2; ++i) {
    out[i] = static_cast<uint8_t>((codes[i] & 15) | codes[i + kBlock / 2] << 4);
  }
}

LD_INLINE void pack_fifth_bits(const uint8_t* codes, uint8_t* out) {
  uint32_t bits = 0;
  for (size_t i = 0; i < kBlock; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4) << i;
  memcpy(out, &bits, sizeof bits);
}

// d | fifth bits where there are five | codes; for eight bits the levels themselves.
template <class Levels, int kBits>
void encode_scaled(const Source& source, uint8_t* out, const float* peaks, int n_peaks) {
  constexpr size_t kLow = kBits == 5 ? 6 : 2, kBytes = kBits == 8 ? 34 : kLow + kBlock / 2;
  for_batches<kBlock, kBits != 8>(source, [&](size_t first, int count, const Groups<kBlock>& g) {
    const V fitted = best_scale<Levels>(g, peaks, n_peaks, 3);
    const V d = rounded_to_half(fitted * lengths_of_scale<Levels>(g, fitted).stretch()), inverse_d = inverse(d);
    Codes<kBlock> codes;
    for (size_t i = 0; i < kBlock; ++i) codes.set(i, Levels::code(g.x[i] * inverse_d));
    uint8_t* block = out + first * kBytes;
    for (int lane = 0; lane < count; ++lane, block += kBytes) {
      store_half(block, d[lane]);
      const uint8_t* from = codes.of[lane];
      if (kBits == 8) {
        for (size_t i = 0; i < kBlock; ++i) block[2 + i] = static_cast<uint8_t>(from[i] - 127);
      } else {
        if (kBits == 5) pack_fifth_bits(from, block + 2);
        pack_nibbles(from, block + kLow);
      }
    }
  });
}

// d m | fifth bits where there are five | codes.
template <int kBits>
void encode_offset(const Source& source, uint8_t* out) {
  constexpr int kTop = (1 << kBits) - 1;
  constexpr size_t kLow = kBits == 5 ? 8 : 4, kBytes = kLow + kBlock / 2;
  for_batches<kBlock>(source, [&](size_t first, int count, const Groups<kBlock>& g) {
    const Affine best = best_affine<kTop, false>(g, 3);
    const V stretch = lengths_of_affine<kTop>(g, best.s, best.m).stretch();
    const V d = rounded_to_half(best.s * stretch), m = rounded_to_half(best.m * stretch), inverse_d = inverse(d);
    Codes<kBlock> codes;
    for (size_t i = 0; i < kBlock; ++i) codes.set(i, clamp(nearest((g.x[i] + m) * inverse_d), 0, kTop));
    uint8_t* block = out + first * kBytes;
    for (int lane = 0; lane < count; ++lane, block += kBytes) {
      store_half(block, d[lane]);
      store_half(block + 2, -m[lane]);
      if (kBits == 5) pack_fifth_bits(codes.of[lane], block + 4);
      pack_nibbles(codes.of[lane], block + kLow);
    }
  });
}

constexpr float kFinePeaks[] = {1.0f, 0.9995f, 0.999f, 0.998f, 0.997f, 0.996f, 0.994f, 0.992f};
constexpr float kMiddlePeaks[] = {0.94f, 0.96f, 0.98f, 1.0f, 1.02f, 1.04f, 1.06f, 1.09f, 1.12f, 1.16f, 1.2f, 1.3f};

template <size_t kCount>
constexpr int length(const float (&)[kCount]) {
  return static_cast<int>(kCount);
}

void encode_q8_0(const Source& source, uint8_t* out) {
  encode_scaled<Integers<-127, 127>, 8>(source, out, kFinePeaks, length(kFinePeaks));
}
void encode_q4_0(const Source& source, uint8_t* out) {
  encode_scaled<Integers<-8, 7>, 4>(source, out, kPeaks, length(kPeaks));
}
void encode_q5_0(const Source& source, uint8_t* out) {
  encode_scaled<Integers<-16, 15>, 5>(source, out, kPeaks, length(kPeaks));
}
void encode_iq4_nl(const Source& source, uint8_t* out) {
  encode_scaled<Codebook, 4>(source, out, kPeaks, length(kPeaks));
}
void encode_q4_1(const Source& source, uint8_t* out) { encode_offset<4>(source, out); }
void encode_q5_1(const Source& source, uint8_t* out) { encode_offset<5>(source, out); }

// ---- super-blocks of 256 ----

// For each super-block of a batch: write(lane of its first group, its 256 codes, where its block begins).
template <int N, class Write>
LD_INLINE void for_super_blocks(size_t first, int count, const Codes<N>& codes, size_t bytes, uint8_t* out,
                                Write write) {
  constexpr int kPer = kSuperBlock / N;
  for (int lane = 0; lane < count; lane += kPer) {
    write(lane, codes.of[lane], out + (first + lane) / kPer * bytes);
  }
}

// The layout of 6-bit scales and minima in 12 bytes that kquants.cpp describes.
LD_INLINE void pack_group_scales(V code, V min_code, int lane, uint8_t* out) {
  uint8_t s[8], m[8];
  for (int i = 0; i < 8; ++i) {
    s[i] = static_cast<uint8_t>(code[lane + i]);
    m[i] = static_cast<uint8_t>(min_code[lane + i]);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t>(s[i] | s[i + 4] >> 4 << 6);
    out[i + 4] = static_cast<uint8_t>(m[i] | m[i + 4] >> 4 << 6);
    out[i + 8] = static_cast<uint8_t>((s[i + 4] & 15) | (m[i + 4] & 15) << 4);
  }
}

constexpr float kOneStart[] = {1.0f};
constexpr float kStarts[] = {1.0f, 0.9f, 0.8f};

// Q4_K (kBits 4) and Q5_K (5).
template <int kBits>
void encode_min_scaled(const Source& source, uint8_t* out) {
  constexpr int kTop = (1 << kBits) - 1, kPer = kSuperBlock / kBlock;
  constexpr size_t kLow = kBits == 5 ? 48 : 16, kBytes = kLow + kSuperBlock / 2;
  for_batches<kBlock>(source, [&](size_t first, int count, const Groups<kBlock>& g) {
    const Affine wanted = best_affine<kTop, true>(g, 2);
    const SuperAffine best = best_super_affine<kTop, kPer, 63>(g, wanted, kOneStart, length(kOneStart), 3);
    const V m = best.dmin * best.min_code, inverse_s = inverse(best.d * best.code);
    Codes<kBlock> codes;
    for (size_t i = 0; i < kBlock; ++i) codes.set(i, clamp(nearest((g.x[i] + m) * inverse_s), 0, kTop));
    for_super_blocks(first, count, codes, kBytes, out, [&](int lane, const uint8_t* code, uint8_t* block) {
      store_half(block, best.d[lane]);
      store_half(block + 2, best.dmin[lane]);
      pack_group_scales(best.code, best.min_code, lane, block + 4);
      if (kBits == 5) {
        for (size_t i = 0; i < kBlock; ++i) {
          uint8_t bits = 0;
          for (size_t group = 0; group < kPer; ++group) bits |= code[group * kBlock + i] >> 4 << group;
          block[16 + i] = bits;
        }
      }
      for (size_t pair = 0; pair < kPer / 2; ++pair) {
        const uint8_t *even = code + pair * 2 * kBlock, *odd = even + kBlock;
        for (size_t i = 0; i < kBlock; ++i) {
          block[kLow + pair * kBlock + i] = static_cast<uint8_t>((even[i] & 15) | odd[i] << 4);
        }
      }
    });
  });
}

void encode_q4_k(const Source& source, uint8_t* out) { encode_min_scaled<4>(source, out); }
void encode_q5_k(const Source& source, uint8_t* out) { encode_min_scaled<5>(source, out); }

// The low two bits of 256 codes, as kquants_low.cpp describes.
LD_INLINE void pack_low_pairs(const uint8_t* codes, uint8_t* out) {
  for (size_t i = 0; i < 64; ++i) {
    const uint8_t* c = codes + i / 32 * 128 + i % 32;
    out[i] = static_cast<uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
  }
}

void encode_q2_k(const Source& source, uint8_t* out) {
  constexpr int N = 16, kTop = 3;
  for_batches<N>(source, [&](size_t first, int count, const Groups<N>& g) {
    const Affine wanted = best_affine<kTop, true>(g, 2);
    const SuperAffine best = best_super_affine<kTop, 16, 15>(g, wanted, kStarts, length(kStarts), 3);
    const V m = best.dmin * best.min_code, inverse_s = inverse(best.d * best.code);
    Codes<N> codes;
    for (int i = 0; i < N; ++i) codes.set(i, clamp(nearest((g.x[i] + m) * inverse_s), 0, kTop));
    for_super_blocks(first, count, codes, 84, out, [&](int lane, const uint8_t* code, uint8_t* block) {
      for (int i = 0; i < 16; ++i) {
        block[i] = static_cast<uint8_t>(static_cast<int>(best.code[i]) | static_cast<int>(best.min_code[i]) << 4);
      }
      pack_low_pairs(code, block + 16);
      store_half(block + 80, best.d[lane]);
      store_half(block + 82, best.dmin[lane]);
    });
  });
}

void encode_q3_k(const Source& source, uint8_t* out) {
  constexpr int N = 16;
  using Levels = Integers<-4, 3>;
  for_batches<N>(source, [&](size_t first, int count, const Groups<N>& g) {
    const V wanted = best_scale<Levels>(g, kPeaks, length(kPeaks), 2);
    const SuperScale best = best_super_scale<Levels, 16, -32, 31>(g, wanted, 3);
    const V inverse_s = inverse(best.d * best.code);
    Codes<N> codes;
    for (int i = 0; i < N; ++i) codes.set(i, Levels::code(g.x[i] * inverse_s));
    for_super_blocks(first, count, codes, 110, out, [&](int lane, const uint8_t* code, uint8_t* block) {
      for (size_t i = 0; i < 32; ++i) {
        uint8_t bits = 0;
        for (size_t j = 0; j < 8; ++j) bits |= code[32 * j + i] >> 2 << j;
        block[i] = bits;
      }
      pack_low_pairs(code, block + 32);
      int scale[16];
      for (int i = 0; i < 16; ++i) scale[i] = static_cast<int>(best.code[i]) + 32;
      for (int i = 0; i < 8; ++i) block[96 + i] = static_cast<uint8_t>((scale[i] & 15) | (scale[i + 8] & 15) << 4);
      for (int i = 0; i < 4; ++i) {
        block[104 + i] = static_cast<uint8_t>(scale[i] >> 4 | scale[i + 4] >> 4 << 2 | scale[i + 8] >> 4 << 4 |
                                              scale[i + 12] >> 4 << 6);
      }
      store_half(block + 108, best.d[lane]);
    });
  });
}

void encode_q6_k(const Source& source, uint8_t* out) {
  constexpr int N = 16;
  using Levels = Integers<-32, 31>;
  for_batches<N>(source, [&](size_t first, int count, const Groups<N>& g) {
    const V wanted = best_scale<Levels>(g, kMiddlePeaks, length(kMiddlePeaks), 2);
    const SuperScale best = best_super_scale<Levels, 16, -128, 127>(g, wanted, 2);
    const V inverse_s = inverse(best.d * best.code);
    Codes<N> codes;
    for (int i = 0; i < N; ++i) codes.set(i, Levels::code(g.x[i] * inverse_s));
    for_super_blocks(first, count, codes, 210, out, [&](int lane, const uint8_t* code, uint8_t* block) {
      for (size_t i = 0; i < 128; ++i) {  // two quarters of 32 in the low and two in the high four bits of 64 bytes
        const uint8_t* c = code + i / 64 * 128 + i % 64;
        block[i] = static_cast<uint8_t>((c[0] & 15) | (c[64] & 15) << 4);
      }
      for (size_t i = 0; i < 64; ++i) {
        const uint8_t* c = code + i / 32 * 128 + i % 32;
        block[128 + i] = static_cast<uint8_t>(c[0] >> 4 | c[32] >> 4 << 2 | c[64] >> 4 << 4 | c[96] >> 4 << 6);
      }
      for (int i = 0; i < 16; ++i) block[192 + i] = static_cast<uint8_t>(static_cast<int>(best.code[i]));
      store_half(block + 208, best.d[lane]);
    });
  });
}

void encode_iq4_xs(const Source& source, uint8_t* out) {
  constexpr int kPer = kSuperBlock / kBlock;
  for_batches<kBlock>(source, [&](size_t first, int count, const Groups<kBlock>& g) {
    const V wanted = best_scale<Codebook>(g, kPeaks, length(kPeaks), 2);
    const SuperScale best = best_super_scale<Codebook, kPer, -32, 31>(g, wanted, 3);
    const V inverse_s = inverse(best.d * best.code);
    Codes<kBlock> codes;
    for (size_t i = 0; i < kBlock; ++i) codes.set(i, Codebook::code(g.x[i] * inverse_s));
    for_super_blocks(first, count, codes, 136, out, [&](int lane, const uint8_t* code, uint8_t* block) {
      store_half(block, best.d[lane]);
      uint32_t upper = 0;
      for (int i = 0; i < kPer; ++i) {
        const int scale = static_cast<int>(best.code[lane + i]) + 32;
        upper |= static_cast<uint32_t>(scale >> 4) << 2 * i;
        uint8_t* lower = block + 4 + i / 2;
        *lower = static_cast<uint8_t>(i % 2 ? *lower | (scale & 15) << 4 : scale & 15);
        pack_nibbles(code + i * kBlock, block + 8 + i * kBlock / 2);
      }
      block[2] = static_cast<uint8_t>(upper);
      block[3] = static_cast<uint8_t>(upper >> 8);
    });
  });
}

constexpr Encoder kEncoders[] = {
    {TensorType::q8_0, encode_q8_0}, {TensorType::q4_0, encode_q4_0},     {TensorType::q4_1, encode_q4_1},
    {TensorType::q5_0, encode_q5_0}, {TensorType::q5_1, encode_q5_1},     {TensorType::q2_k, encode_q2_k},
    {TensorType::q3_k, encode_q3_k}, {TensorType::q4_k, encode_q4_k},     {TensorType::q5_k, encode_q5_k},
    {TensorType::q6_k, encode_q6_k}, {TensorType::iq4_nl, encode_iq4_nl}, {TensorType::iq4_xs, encode_iq4_xs},
};
