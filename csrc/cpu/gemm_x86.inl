// Float tiles of the x86 rows: sums of two registers of channels for every row of a tile. Included inside an anonymous
// namespace, after gemm.inl, kFloatRows and
//   Floats, kLanes                       vector type, its floats; a panel is two of them
//   load_floats(p), store_floats(p, v)   unaligned
//   add_product(sum, w, x)               sum + w * x in one rounding, x for all lanes

template <int kRows>
struct FloatTileOf {
  static void run(const FloatTile& tile) {
    Floats y[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      y[r][0] = load_floats(tile.out + r * tile.out_stride);
      y[r][1] = load_floats(tile.out + r * tile.out_stride + kLanes);
    }
    const float *w = tile.w, *x = tile.x;
    for (int i = 0; i < tile.k; ++i, w += kPanel, ++x) {
      const Floats w0 = load_floats(w), w1 = load_floats(w + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        y[r][0] = add_product(y[r][0], w0, x[r * tile.x_stride]);
        y[r][1] = add_product(y[r][1], w1, x[r * tile.x_stride]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      store_floats(tile.out + r * tile.out_stride, y[r][0]);
      store_floats(tile.out + r * tile.out_stride + kLanes, y[r][1]);
    }
  }
};

void float_tile(const FloatTile& tile) { by_rows<kFloatRows, FloatTileOf>(tile); }
