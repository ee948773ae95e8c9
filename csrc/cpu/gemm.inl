// What every kernel row's gemm_<row>.cpp compiles under its own flags: the end of a linear layer and the layout of a
// record. Included once per row, inside its anonymous namespace, so that nothing here is shared between rows.

// Parts of a record, see record_bytes(): float16 d, float16 dmin, codes, minimum codes (joint: the same), q, high.
struct Record {
  const uint8_t *d, *dmin, *codes, *min_codes, *q, *high;
  const uint8_t* next;
};

// Four bytes of an input row, as one lane.
inline int32_t four_bytes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return four;
}

// Asks for block b's share of the weights ahead, into the second-level cache.
inline void prefetch_ahead(const Int8Tile& tile, int b) {
  for (int i = b * tile.ahead_lines; i < (b + 1) * tile.ahead_lines; ++i) {
    __builtin_prefetch(tile.ahead + 64 * i, 0, 2);
  }
}

inline Record record_at(const PackedTraits& t, const uint8_t* p) {
  Record r;
  r.d = p;
  r.dmin = p += 2 * kPanel;
  r.codes = p += t.minimum ? 2 * kPanel : 0;
  const int codes = t.super ? t.record / t.span * kPanel : 0;
  r.min_codes = t.joint ? p : p + codes;
  r.q = p += t.minimum && !t.joint ? 2 * codes : codes;
  r.high = p + t.record * kPanel / 8 * low_bits(t.bits);
  r.next = p + t.record * kPanel / 8 * t.bits;
  return r;
}

inline void finish(const float* sums, const float* bias, bool add, int n, float* y) {
  if (bias && add) {
    for (int i = 0; i < n; ++i) y[i] = sums[i] + bias[i] + y[i];
  } else if (bias) {
    for (int i = 0; i < n; ++i) y[i] = sums[i] + bias[i];
  } else if (add) {
    for (int i = 0; i < n; ++i) y[i] = sums[i] + y[i];
  } else {
    for (int i = 0; i < n; ++i) y[i] = sums[i];
  }
}

// TileOf<rows> with exactly tile.rows, kMost at most.
template <int kMost, template <int> class TileOf, class Tile>
inline void by_rows(const Tile& tile) {
  if constexpr (kMost > 1) {
    if (tile.rows < kMost) return by_rows<kMost - 1, TileOf>(tile);
  }
  TileOf<kMost>::run(tile);
}
