// The table of repack.h. Quantised bytes are moved as 32-bit words, which hold 4 values (8 of 4 bits): four channels at a
// time, a vector of the same word of each is what a unit of the panel wants side by side, so the transposition is the way
// the vectors are loaded, and all splitting of bits is done on whole vectors. Portable vectors of 16 bytes: this runs
// once per load and is bound by memory, so no kernel row needs its own.
#include "cpu/repack.h"

#include <array>
#include <cstring>

#include "quant/codebook.h"

namespace ld {
namespace {

constexpr int kSuper = 256;

// E2M1 in sixteenths, so that its entries fill a byte: fast arithmetic takes steps of what a byte allows.
constexpr int kE2m1Shift = 3;  // more than the doubled ones
constexpr auto kE2m1Wide = [] {
  std::array<int8_t, 16> out = {};
  for (int i = 0; i < 16; ++i) out[i] = static_cast<int8_t>(quant::kE2m1[i] * (1 << kE2m1Shift));
  return out;
}();

constexpr PackedTraits kTraits[static_cast<int>(PackedKind::count)] = {
    {"f32", false, 32, 0, 1, 0, false, false, 0, nullptr, false, false},
    {"f16", false, 16, 0, 1, 0, false, false, 0, nullptr, false, false},
    {"bf16", false, 16, 0, 1, 0, false, false, 0, nullptr, false, false},
    {"i4", true, 4, 4, kBlock, 32, false, false, 8, nullptr, false, false},
    {"i4_min", true, 4, 4, kBlock, 32, true, false, 0, nullptr, false, false},
    {"i5", true, 5, 5, kBlock, 32, false, false, 16, nullptr, false, false},
    {"i5_min", true, 5, 5, kBlock, 32, true, false, 0, nullptr, false, false},
    {"i8", true, 8, 8, kBlock, 32, false, false, 0, nullptr, false, false},
    {"i4_super_min", true, 4, 4, kSuper, 32, true, true, 0, nullptr, false, false},
    {"i5_super_min", true, 5, 5, kSuper, 32, true, true, 0, nullptr, false, false},
    {"i6_super", true, 6, 6, kSuper, 16, false, true, 32, nullptr, false, false},
    {"i2_super_min", true, 2, 2, kSuper, 16, true, true, 0, nullptr, false, true},
    {"i3_super", true, 3, 3, kSuper, 16, false, true, 4, nullptr, false, false},
    {"iq4", true, 4, 8, kBlock, 32, false, false, 0, quant::kCodebook, false, false},
    {"iq4_super", true, 4, 8, kSuper, 32, false, true, 0, quant::kCodebook, false, false},
    {"e2m1", true, 4, 8, kBlock, 32, false, false, 0, kE2m1Wide.data(), true, false},
};

// Where the parts of a record begin; the order that record_bytes states.
struct RecordLayout {
  size_t dmin, codes, min_codes, q, high, bytes;
  constexpr RecordLayout(const PackedTraits& t, int panel) : dmin(), codes(), min_codes(), q(), high(), bytes() {
    const size_t w = panel;
    dmin = 2 * w;
    codes = dmin + (t.minimum ? 2 * w : 0);
    min_codes = codes + (t.super ? t.record / t.span * w : 0);
    q = min_codes + (t.super && t.minimum && !t.joint ? t.record / t.span * w : 0);
    high = q + t.record * w / 8 * low_bits(t.bits);
    bytes = q + t.record * w / 8 * t.bits;
  }
};

// The same 32-bit word of four channels.
typedef uint32_t Words __attribute__((vector_size(16)));

constexpr uint32_t kLow = 0x0f0f0f0f;

inline uint32_t word(const uint8_t* p) {
  uint32_t value;
  memcpy(&value, p, 4);
  return value;
}

inline Words words(const uint8_t* const* p, size_t at) {
  return Words{word(p[0] + at), word(p[1] + at), word(p[2] + at), word(p[3] + at)};
}

// Where the units of four channels go: [unit][panel][4].
struct Units {
  uint8_t* to;
  size_t stride;
  void put(Words w) {
    memcpy(to, &w, sizeof w);
    to += stride;
  }
};

// 8 * kWords values: the low nibbles of kWords words, then the high ones.
template <int kWords>
inline void put_nibbles(const uint8_t* const* p, size_t at, Units* low) {
#pragma GCC unroll 8
  for (int i = 0; i < kWords; i += 2) {
    const Words a = words(p, at + 4 * i), b = words(p, at + 4 * i + 4);
    low->put((a & kLow) | (b & kLow) << 4);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kWords; i += 2) {
    const Words a = words(p, at + 4 * i), b = words(p, at + 4 * i + 4);
    low->put((a >> 4 & kLow) | (b & ~kLow));
  }
}

// Fifth bits of 32 values as the file has them, bit v of value v, to bit v / 4 of byte v % 4.
inline Words spread_fifth(Words bits) {
  Words out = {};
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Words x = bits >> j & 0x11111111u;  // every fourth bit, pushed together
    x = (x | x >> 3) & 0x03030303u;
    x = (x | x >> 6) & 0x000f000fu;
    x = (x | x >> 12) & 0xffu;
    out |= x << 8 * j;
  }
  return out;
}

// 32 bytes, of which bit b is that of the b-th 32 values.
inline void put_bits(const uint8_t* const* p, size_t at, Units* to) {
  Words bits[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) bits[i] = words(p, at + 4 * i);
  for (int b = 0; b < kSuper / kBlock; ++b) {
    Words out = {};
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) out |= (bits[i] >> b & 0x01010101u) << i;
    to->put(out);
  }
}

// 32 bytes, of which bits 2 b and 2 b + 1 are those of the b-th 32 values.
inline void put_pairs(const uint8_t* const* p, size_t at, Units* to) {
  Words pairs[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) pairs[i] = words(p, at + 4 * i);
  for (int b = 0; b < 8; b += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      Words out = {};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) out |= (pairs[i + j] >> b & 0x03030303u) << 2 * j;
      to->put(out);
    }
  }
}

// What stands beside the values of one block: scale = d * code and minimum = -dmin * code for super kinds, d and dmin
// themselves otherwise.
struct Head {
  uint16_t d, dmin;  // float16 (or bfloat16)
  uint8_t codes[kSuper / 16], min_codes[kSuper / kBlock];
};

inline uint16_t half_at(const uint8_t* p) {
  uint16_t value;
  memcpy(&value, p, 2);
  return value;
}

// ---- one struct per type: head() of a block, values() of a block of four channels ----

struct Q4_0 {
  static constexpr TensorType kType = TensorType::q4_0;
  static constexpr PackedKind kKind = PackedKind::i4;
  static constexpr int kBytes = 18;
  static void head(const uint8_t* p, Head* h) { h->d = half_at(p); }
  static void values(const uint8_t* const* p, Units low, Units) { put_nibbles<4>(p, 2, &low); }
};

struct Q4_1 {
  static constexpr TensorType kType = TensorType::q4_1;
  static constexpr PackedKind kKind = PackedKind::i4_min;
  static constexpr int kBytes = 20;
  static void head(const uint8_t* p, Head* h) {
    h->d = half_at(p);
    h->dmin = half_at(p + 2);
  }
  static void values(const uint8_t* const* p, Units low, Units) { put_nibbles<4>(p, 4, &low); }
};

struct Q5_0 {
  static constexpr TensorType kType = TensorType::q5_0;
  static constexpr PackedKind kKind = PackedKind::i5;
  static constexpr int kBytes = 22;
  static void head(const uint8_t* p, Head* h) { h->d = half_at(p); }
  static void values(const uint8_t* const* p, Units low, Units high) {
    high.put(spread_fifth(words(p, 2)));
    put_nibbles<4>(p, 6, &low);
  }
};

struct Q5_1 {
  static constexpr TensorType kType = TensorType::q5_1;
  static constexpr PackedKind kKind = PackedKind::i5_min;
  static constexpr int kBytes = 24;
  static void head(const uint8_t* p, Head* h) { Q4_1::head(p, h); }
  static void values(const uint8_t* const* p, Units low, Units high) {
    high.put(spread_fifth(words(p, 4)));
    put_nibbles<4>(p, 8, &low);
  }
};

struct Q8_0 {
  static constexpr TensorType kType = TensorType::q8_0;
  static constexpr PackedKind kKind = PackedKind::i8;
  static constexpr int kBytes = 34;
  static void head(const uint8_t* p, Head* h) { h->d = half_at(p); }
  static void values(const uint8_t* const* p, Units all, Units) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; i += 4) all.put(words(p, 2 + i));
  }
};

struct Q4_K {
  static constexpr TensorType kType = TensorType::q4_k;
  static constexpr PackedKind kKind = PackedKind::i4_super_min;
  static constexpr int kBytes = 144;
  // d, dmin, and 6-bit codes of 8 blocks in 12 bytes.
  static void head(const uint8_t* p, Head* h) {
    h->d = half_at(p);
    h->dmin = half_at(p + 2);
    const uint32_t a = word(p + 4), b = word(p + 8), c = word(p + 12);
    const uint32_t codes[2] = {a & 0x3f3f3f3f, (c & kLow) | (a >> 2 & 0x30303030)};
    const uint32_t min_codes[2] = {b & 0x3f3f3f3f, (c >> 4 & kLow) | (b >> 2 & 0x30303030)};
    memcpy(h->codes, codes, 8);
    memcpy(h->min_codes, min_codes, 8);
  }
  static void values(const uint8_t* const* p, Units low, Units) { nibbles(p, 16, &low); }
  // 64 values per 32 bytes: low nibbles first.
  static void nibbles(const uint8_t* const* p, size_t at, Units* low) {
    for (int i = 0; i < kSuper; i += 64) put_nibbles<8>(p, at + i / 2, low);
  }
};

struct Q5_K {
  static constexpr TensorType kType = TensorType::q5_k;
  static constexpr PackedKind kKind = PackedKind::i5_super_min;
  static constexpr int kBytes = 176;
  static void head(const uint8_t* p, Head* h) { Q4_K::head(p, h); }
  static void values(const uint8_t* const* p, Units low, Units high) {
    Q4_K::nibbles(p, 48, &low);
    put_bits(p, 16, &high);
  }
};

// Low nibbles [2][64], high pairs [2][32], one signed scale per 16, d last.
struct Q6_K {
  static constexpr TensorType kType = TensorType::q6_k;
  static constexpr PackedKind kKind = PackedKind::i6_super;
  static constexpr int kBytes = 210;
  static void head(const uint8_t* p, Head* h) {
    memcpy(h->codes, p + 192, 16);
    h->d = half_at(p + 208);
  }
  static void values(const uint8_t* const* p, Units low, Units high) {
    for (int half = 0; half < 2; ++half) {
      put_nibbles<16>(p, 64 * half, &low);
      put_pairs(p, 128 + 32 * half, &high);
    }
  }
};

// Sixteen bytes of scale and minimum, pairs [2][32], d, dmin.
struct Q2_K {
  static constexpr TensorType kType = TensorType::q2_k;
  static constexpr PackedKind kKind = PackedKind::i2_super_min;
  static constexpr int kBytes = 84;
  static void head(const uint8_t* p, Head* h) {
    memcpy(h->codes, p, 16);
    h->d = half_at(p + 80);
    h->dmin = half_at(p + 82);
  }
  static void values(const uint8_t* const* p, Units low, Units) {
    for (int half = 0; half < 2; ++half) put_pairs(p, 16 + 32 * half, &low);
  }
};

// Third bits [32], low pairs [2][32], sixteen 6-bit scales in 12 bytes, d.
struct Q3_K {
  static constexpr TensorType kType = TensorType::q3_k;
  static constexpr PackedKind kKind = PackedKind::i3_super;
  static constexpr int kBytes = 110;
  static void head(const uint8_t* p, Head* h) {
    const uint32_t low[2] = {word(p + 96), word(p + 100)}, high = word(p + 104);
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = (low[i % 2] >> i / 2 * 4 & kLow) | (high >> 2 * i & 0x03030303u) << 4;
      memcpy(h->codes + 4 * i, &codes, 4);
    }
    for (uint8_t& code : h->codes) code = static_cast<uint8_t>(code - 32);
    h->d = half_at(p + 108);
  }
  static void values(const uint8_t* const* p, Units low, Units high) {
    for (int half = 0; half < 2; ++half) put_pairs(p, 32 + 32 * half, &low);
    put_bits(p, 0, &high);
  }
};

struct IQ4_NL {
  static constexpr TensorType kType = TensorType::iq4_nl;
  static constexpr PackedKind kKind = PackedKind::iq4;
  static constexpr int kBytes = 18;
  static void head(const uint8_t* p, Head* h) { h->d = half_at(p); }
  static void values(const uint8_t* const* p, Units low, Units) { put_nibbles<4>(p, 2, &low); }
};

// d, high pairs and low nibbles of eight 6-bit scales, eight blocks as those of IQ4_NL.
struct IQ4_XS {
  static constexpr TensorType kType = TensorType::iq4_xs;
  static constexpr PackedKind kKind = PackedKind::iq4_super;
  static constexpr int kBytes = 136;
  static void head(const uint8_t* p, Head* h) {
    h->d = half_at(p);
    for (int b = 0; b < kSuper / kBlock; ++b) {
      const int low = p[4 + b / 2] >> b % 2 * 4 & 15, high = half_at(p + 2) >> 2 * b & 3;
      h->codes[b] = static_cast<uint8_t>((low | high << 4) - 32);
    }
  }
  static void values(const uint8_t* const* p, Units low, Units) {
    for (int i = 0; i < kSuper; i += kBlock) put_nibbles<4>(p, 8 + i / 2, &low);
  }
};

// 2^(exponent - 128) of doubled values, less what they are shifted by; the smallest are denormal.
struct MXFP4 {
  static constexpr TensorType kType = TensorType::mxfp4;
  static constexpr PackedKind kKind = PackedKind::e2m1;
  static constexpr int kBytes = 17;
  static void head(const uint8_t* p, Head* h) {
    constexpr int kFirst = kE2m1Shift + 2;  // the smallest normal one
    h->d = static_cast<uint16_t>(p[0] < kFirst ? 1 << (p[0] + 7 - kFirst) : (p[0] - kFirst + 1) << 7);
  }
  static void values(const uint8_t* const* p, Units low, Units) { put_nibbles<4>(p, 1, &low); }
};

template <class Type>
void integer_records(const uint8_t* const* rows, int panel, int count, uint8_t* out) {
  constexpr PackedTraits t = kTraits[static_cast<int>(Type::kKind)];
  const RecordLayout at(t, panel);
  const size_t stride = 4 * static_cast<size_t>(panel);
  // Channels outside: each is read from front to end, and the records, few enough for the nearest cache, fill up.
  for (int c = 0; c < panel; c += 4) {
    const uint8_t* p[4] = {rows[c], rows[c + 1], rows[c + 2], rows[c + 3]};
    uint8_t* to = out;
    for (int r = 0; r < count; ++r, to += at.bytes) {
      Type::values(p, {to + at.q + 4 * c, stride}, {to + at.high + 4 * c, stride});
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Head head;
        Type::head(p[i], &head);
        memcpy(to + 2 * (c + i), &head.d, 2);
        if (t.minimum) memcpy(to + at.dmin + 2 * (c + i), &head.dmin, 2);
        if constexpr (t.super) {
#pragma GCC unroll 16
          for (int s = 0; s < t.record / t.span; ++s) to[at.codes + s * panel + c + i] = head.codes[s];
        }
        if constexpr (t.super && t.minimum && !t.joint) {
#pragma GCC unroll 8
          for (int b = 0; b < t.record / t.span; ++b) to[at.min_codes + b * panel + c + i] = head.min_codes[b];
        }
        p[i] += Type::kBytes;
      }
    }
  }
}

void float_records(const uint8_t* const* rows, int panel, int count, uint8_t* out) {
  for (int c = 0; c < panel; c += 4) {
    Units to = {out + 4 * c, 4 * static_cast<size_t>(panel)};
    for (int i = 0; i < count; ++i) to.put(words(rows + c, 4 * i));
  }
}

// Two values of k in a word; channels of even and odd number apart, so that neighbours meet in a word.
void half_records(const uint8_t* const* rows, int panel, int count, uint8_t* out) {
  for (int c = 0; c < panel; c += 8) {
    const uint8_t* const* p = rows + c;
    const uint8_t *even[4] = {p[0], p[2], p[4], p[6]}, *odd[4] = {p[1], p[3], p[5], p[7]};
    Units to = {out + 2 * c, 2 * static_cast<size_t>(panel)};
    for (int i = 0; i + 1 < count; i += 2) {
      const Words a = words(even, 2 * i), b = words(odd, 2 * i);
      to.put((a & 0xffffu) | b << 16);
      to.put(a >> 16 | (b & 0xffff0000u));
    }
    for (int i = 0; count % 2 && i < 8; ++i) memcpy(to.to + 2 * i, p[i] + 2 * (count - 1), 2);
  }
}

template <class Type>
constexpr Repack row_of() {
  return {Type::kType, Type::kKind, integer_records<Type>};
}

constexpr Repack kRows[] = {
    {TensorType::f32, PackedKind::f32, float_records},
    {TensorType::f16, PackedKind::f16, half_records},
    {TensorType::bf16, PackedKind::bf16, half_records},
    row_of<Q4_0>(),
    row_of<Q4_1>(),
    row_of<Q5_0>(),
    row_of<Q5_1>(),
    row_of<Q8_0>(),
    row_of<Q4_K>(),
    row_of<Q5_K>(),
    row_of<Q6_K>(),
    row_of<Q2_K>(),
    row_of<Q3_K>(),
    row_of<IQ4_NL>(),
    row_of<IQ4_XS>(),
    row_of<MXFP4>(),
};

}  // namespace

const PackedTraits& packed_traits(PackedKind kind) { return kTraits[static_cast<int>(kind)]; }

size_t record_bytes(const PackedTraits& traits, int panel) {
  if (!traits.integer) return static_cast<size_t>(panel) * traits.bits / 8;
  return RecordLayout(traits, panel).bytes;
}

const Repack* find_repack(TensorType type) {
  for (const Repack& each : kRows) {
    if (each.type == type) return &each;
  }
  return nullptr;
}

}  // namespace ld
