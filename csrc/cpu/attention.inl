// Interval attention of one kv head, the end of vector.inl. Positions are taken in blocks of
// kSpan, anchored at position 0, with a running maximum and sum per query row; query rows in tiles of up to LD_ROWS so
// that keys and values are loaded once per tile. A query row's sums ascend by position whatever its tile and whatever
// the block's edges, so its result depends on nothing but its own query and interval.
//
// Scores of a tile: [rows][kSpan], a key panel at a time (q is packed [head_dim][rows], times scale). Positions outside a
// row's interval get -infinity before the softmax and are never multiplied with values, which may be stale. So does the
// one that is hidden from it; its weight is 0.

constexpr int kSpan = 128;  // positions per block
static_assert(kSpan % kKeyPanel == 0 && kKeyPanel % (2 * kWidth) == 0 && kValueAlign % kWidth == 0);

constexpr float kMinusInfinity = -__builtin_inff();

// s[r][0, kKeyPanel) = q[r] . keys of one panel
template <int rows>
void panel_scores(const float* q, const float* keys, int head_dim, float* s) {
  for (int column = 0; column < kKeyPanel; column += 2 * kWidth) {
    vf sum[rows][2] = {};
    const float* key = keys + column;
    for (int d = 0; d < head_dim; ++d, key += kKeyPanel) {
      const vf k0 = load(key), k1 = load(key + kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const vf value = broadcast(q[d * rows + r]);
        sum[r][0] = fma(value, k0, sum[r][0]);
        sum[r][1] = fma(value, k1, sum[r][1]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      store(s + r * kSpan + column, sum[r][0]);
      store(s + r * kSpan + column + kWidth, sum[r][1]);
    }
  }
}

// o[r][0, vectors * kWidth) += sum over positions [from, to) of p[r][position] * v[position]
template <int rows, int vectors>
LD_INLINE void add_columns(const float* p, const float* v, int width, int from, int to, float* o) {
  vf sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c) sum[r][c] = load(o + r * width + c * kWidth);
  }
  for (int j = from; j < to; ++j) {
    const float* value = v + static_cast<ptrdiff_t>(j) * width;
    vf columns[vectors];
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c) columns[c] = load(value + c * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const vf weight = broadcast(p[r * kSpan + j]);
#pragma GCC unroll 4
      for (int c = 0; c < vectors; ++c) sum[r][c] = fma(weight, columns[c], sum[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < vectors; ++c) store(o + r * width + c * kWidth, sum[r][c]);
  }
}

template <int rows>
void add_values(const float* p, const float* v, int width, int from, int to, float* o) {
  constexpr int vectors = rows == 1 ? 4 : 2;  // a lone row needs more sums in flight
  int column = 0;
  for (; column + vectors * kWidth <= width; column += vectors * kWidth) {
    add_columns<rows, vectors>(p, v + column, width, from, to, o + column);
  }
  for (; column < width; column += kWidth) add_columns<rows, 1>(p, v + column, width, from, to, o + column);
}

// Tile heights. A tile is padded with zero queries up to the next of them.
struct TileKernels {
  int rows;
  void (*scores)(const float* q, const float* keys, int head_dim, float* s);
  void (*values)(const float* p, const float* v, int width, int from, int to, float* o);
};
constexpr TileKernels kTiles[] = {
    {1, panel_scores<1>, add_values<1>},
    {2, panel_scores<2>, add_values<2>},
    {4, panel_scores<4>, add_values<4>},
#if LD_ROWS > 8
    {8, panel_scores<8>, add_values<8>},
#endif
#if LD_ROWS > 4
    {LD_ROWS, panel_scores<LD_ROWS>, add_values<LD_ROWS>},
#endif
};

LD_INLINE const TileKernels& tile_for(int queries) {
  const TileKernels* tile = kTiles;
  while (tile->rows < queries && tile->rows < LD_ROWS) ++tile;
  return *tile;
}

struct Running {  // of a query row, over the blocks so far
  float sum[kWidth];
  float max;
};

struct Interval {
  int from, to;
};

// One tile against positions [block, block + kSpan): rows see the intervals `seen` but for the position `hidden` (-1 =
// none), all relative to the block; those of `used` panels are scored.
LD_INLINE void attend_tile(const TileKernels& tile, int queries, const Interval* seen, const int* hidden, Interval used,
                           const float* q, const float* keys, const float* values, int head_dim, int width, float* s,
                           Running* running, float* o) {
  for (int j = used.from; j < used.to; j += kKeyPanel) {
    tile.scores(q, keys + static_cast<ptrdiff_t>(j) * head_dim, head_dim, s + j);
  }
  float shift[LD_ROWS + kWidth];  // old maximum minus new, then its exponential
  Interval common{0, kSpan};
  for (int r = 0; r < queries; ++r) {
    float* row = s + r * kSpan;
    for (int j = used.from; j < seen[r].from && j < used.to; ++j) row[j] = kMinusInfinity;
    for (int j = seen[r].to > used.from ? seen[r].to : used.from; j < used.to; ++j) row[j] = kMinusInfinity;
    if (hidden[r] >= 0) row[hidden[r]] = kMinusInfinity;
    vf top = broadcast(running[r].max);
    for (int j = used.from; j < used.to; j += kWidth) top = maximum(load(row + j), top);
    const float max = largest(top);
    // Rows that see nothing yet have no maximum; 0 makes all their weights exp(-infinity) = 0.
    shift[r] = max == kMinusInfinity ? 0 : running[r].max - max;
    running[r].max = max;
    if (seen[r].from > common.from) common.from = seen[r].from;
    if (seen[r].to < common.to) common.to = seen[r].to;
  }
  for (int r = 0; r < queries; r += kWidth)
    store(shift + r, exponential(load_part(shift + r, queries - r < kWidth ? queries - r : kWidth, 0)));
  for (int r = 0; r < queries; ++r) {
    float* row = s + r * kSpan;
    const float max = running[r].max == kMinusInfinity ? 0 : running[r].max;
    vf sum = {};
    for (int j = used.from; j < used.to; j += kWidth) {
      const vf weight = exponential(load(row + j) - max);
      store(row + j, weight);
      sum += weight;
    }
    store(running[r].sum, fma(load(running[r].sum), broadcast(shift[r]), sum));
    if (shift[r] != 1) {
      for (int c = 0; c < width; c += kWidth) store(o + r * width + c, load(o + r * width + c) * shift[r]);
    }
  }
  // Ascending positions for every row: what a row sees before the common positions, those, what it sees after.
  const bool shared = common.from < common.to;
  if (!shared) common = {kSpan, kSpan};
  for (int r = 0; r < queries; ++r) {
    const int to = seen[r].to < common.from ? seen[r].to : common.from;
    if (seen[r].from < to) add_values<1>(s + r * kSpan, values, width, seen[r].from, to, o + r * width);
  }
  if (!shared) return;
  tile.values(s, values, width, common.from, common.to, o);
  for (int r = 0; r < queries; ++r) {
    if (common.to < seen[r].to) add_values<1>(s + r * kSpan, values, width, common.to, seen[r].to, o + r * width);
  }
}

LD_INLINE int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

void attend(const AttentionTask& task) {
  const int queries = task.n_rows * task.group, head_dim = task.head_dim;
  const int width = (head_dim + kValueAlign - 1) / kValueAlign * kValueAlign;
  const int padded = (queries + LD_ROWS - 1) / LD_ROWS * LD_ROWS;
  // scratch: o [padded][width], q [padded][head_dim] in tiles, scores of one tile, running sums
  float* o = task.scratch;
  float* q = o + static_cast<ptrdiff_t>(padded) * width;
  float* s = q + (static_cast<ptrdiff_t>(padded) * head_dim + 15) / 16 * 16;
  Running* running = reinterpret_cast<Running*>(s + LD_ROWS * kSpan);

  __builtin_memset(o, 0, sizeof(float) * padded * width);
  int low = task.rows[0].lo, high = 0;
  for (int r = 0; r < task.n_rows; ++r) {
    if (task.rows[r].lo < low) low = task.rows[r].lo;
    if (task.rows[r].hi > high) high = task.rows[r].hi;
  }
  for (int first = 0; first < queries; first += LD_ROWS) {
    const int count = queries - first < LD_ROWS ? queries - first : LD_ROWS;
    const int rows = tile_for(count).rows;
    float* tile_q = q + static_cast<ptrdiff_t>(first) * head_dim;
    for (int r = 0; r < rows; ++r) {
      const int query = first + r;
      const float* source = task.q + static_cast<ptrdiff_t>(query / task.group) * task.stride +
                            static_cast<ptrdiff_t>(query % task.group) * head_dim;
      for (int d = 0; d < head_dim; ++d) tile_q[d * rows + r] = r < count ? source[d] * task.scale : 0;
      if (r >= count) continue;
      store(running[query].sum, vf{});
      running[query].max = kMinusInfinity;
    }
  }

  for (int block = low / kSpan * kSpan; block < high; block += kSpan) {
    const float* keys = task.keys + static_cast<ptrdiff_t>(block) * head_dim;
    const float* values = task.values + static_cast<ptrdiff_t>(block) * width;
    for (int first = 0; first < queries; first += LD_ROWS) {
      const int count = queries - first < LD_ROWS ? queries - first : LD_ROWS;
      Interval seen[LD_ROWS], used{kSpan, 0};
      int hidden[LD_ROWS];
      for (int r = 0; r < count; ++r) {
        const RowInfo& row = task.rows[(first + r) / task.group];
        seen[r] = {clamp(row.lo - block, 0, kSpan), clamp(row.hi - block, 0, kSpan)};
        hidden[r] = row.hidden >= block && row.hidden < block + kSpan ? row.hidden - block : -1;
        if (seen[r].from >= seen[r].to) {
          seen[r] = {0, 0};
          continue;
        }
        if (seen[r].from < used.from) used.from = seen[r].from;
        if (seen[r].to > used.to) used.to = seen[r].to;
      }
      if (used.from >= used.to) continue;
      used = {used.from / kKeyPanel * kKeyPanel, (used.to + kKeyPanel - 1) / kKeyPanel * kKeyPanel};
      attend_tile(tile_for(count), count, seen, hidden, used, q + static_cast<ptrdiff_t>(first) * head_dim, keys,
                  values, head_dim, width, s, running + first, o + static_cast<ptrdiff_t>(first) * width);
    }
  }

  for (int query = 0; query < queries; ++query) {
    const double sum = total(load(running[query].sum));
    const float factor = sum == 0 ? 0 : static_cast<float>(1 / sum);
    const float* source = o + static_cast<ptrdiff_t>(query) * width;
    float* out = task.out + static_cast<ptrdiff_t>(query / task.group) * task.out_stride +
                 static_cast<ptrdiff_t>(query % task.group) * head_dim;
    for (int d = 0; d < head_dim; ++d) out[d] = source[d] * factor;
  }
}

static_assert(kMixed == kSpan);

// Any height of tile gives a row the same sums, so rows are taken by the largest that fit.
void mix(const float* p, int rows, const float* v, int width, int count, float* o) {
  for (int done = 0; done < rows;) {
    const TileKernels* tile = &tile_for(rows - done);
    while (tile->rows > rows - done) --tile;
    tile->values(p + static_cast<ptrdiff_t>(done) * kSpan, v, width, 0, count,
                 o + static_cast<ptrdiff_t>(done) * width);
    done += tile->rows;
  }
}
