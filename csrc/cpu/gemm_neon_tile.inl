// The tiles of bytes that the NEON rows share. Included inside their anonymous namespace after
//   Sums<kRows>                      sums of kRows rows by kPanel channels
//   dot16<kRows>(acc, x, stride, w)  adds the products of 16 values of k
//   sums_of<kRows>(acc, r, c)        row r, channels 4 c to 4 c + 3

template <int kRows>
inline void clear(Sums<kRows>& acc) {
  for (auto& group : acc) {
#pragma GCC unroll 8
    for (int32x4_t& sums : group) sums = vdupq_n_s32(0);
  }
}

template <int kRows, int kSpan, bool kMinimum>
void int8_tile_of(const Int8Tile& given) {
  const Int8Tile tile = given;  // a copy that no store can change
  const Int8Chunk& chunk = *tile.chunk;
  const int8_t* w = (const int8_t*)chunk.q;
  const float *scale = chunk.scale, *minimum = chunk.minimum;
  for (int b = 0; b < chunk.k / kBlock;
       ++b, w += kBlock * kPanel, scale += kBlock / kSpan * kPanel, minimum += kBlock / kSpan * kPanel) {
    prefetch_ahead(tile, b);
    const int8_t* x = (const int8_t*)tile.row.q + b * kBlock;
    Sums<kRows> acc = {};
    dot16<kRows>(acc, x, tile.q_stride, w);
    float32x4_t first[kRows][kLanes];
    if (kSpan == 16) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kLanes; ++c) first[r][c] = scaled(sums_of<kRows>(acc, r, c), scale + 4 * c);
      }
      clear<kRows>(acc);
    }
    dot16<kRows>(acc, x + 16, tile.q_stride, w + 16 * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kLanes; ++c) {
        const int32x4_t sums = sums_of<kRows>(acc, r, c);
        const float32x4_t t =
            kSpan == 16 ? scaled(sums, scale + kPanel + 4 * c, first[r][c]) : scaled(sums, scale + 4 * c);
        add_block<kSpan, kMinimum>(tile, r, b, 4 * c, t, minimum);
      }
    }
  }
}

template <int kRows>
struct Int8TileOf {
  static void run(const Int8Tile& tile) {
    if (tile.chunk->span == 16) {
      tile.chunk->minimum_used ? int8_tile_of<kRows, 16, true>(tile) : int8_tile_of<kRows, 16, false>(tile);
    } else {
      tile.chunk->minimum_used ? int8_tile_of<kRows, 32, true>(tile) : int8_tile_of<kRows, 32, false>(tile);
    }
  }
};

void int8_tile(const Int8Tile& tile) { by_rows<kInt8Rows, Int8TileOf>(tile); }

// ---- fast arithmetic ----

template <int kRows>
struct FoldTileOf {
  static void run(const Int8Tile& given) {
    const Int8Tile tile = given;
    const int8_t* w = (const int8_t*)tile.chunk->q;
    const int k = tile.chunk->k;
    for (int g = 0; g * kGroup < k; ++g) {
      const int end = g * kGroup + kGroup < k ? g * kGroup + kGroup : k;
      Sums<kRows> acc = {};
      for (int i = g * kGroup; i < end; i += kBlock, w += kBlock * kPanel) {
        prefetch_ahead(tile, i / kBlock);
        const int8_t* x = (const int8_t*)tile.row.q + i;
        dot16<kRows>(acc, x, tile.q_stride, w);
        dot16<kRows>(acc, x + 16, tile.q_stride, w + 16 * kPanel);
      }
      const float* scale = tile.chunk->group_scale + g * kPanel;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kLanes; ++c) {
          float* out = tile.out + r * tile.out_stride + 4 * c;
          const float32x4_t t = scaled(sums_of<kRows>(acc, r, c), scale + 4 * c);
          vst1q_f32(out, vfmaq_n_f32(vld1q_f32(out), t, tile.row.scale[r * tile.block_stride + g]));
        }
      }
    }
  }
};

void fold_tile(const Int8Tile& tile) { by_rows<kInt8Rows, FoldTileOf>(tile); }

// Signed bytes, as int8_unpack leaves them.
void fold_unpack(const PackedTraits& t, const uint8_t* records, int k, Int8Chunk* chunk) {
  int8_unpack(t, records, k, chunk);
  fold_chunk<0x80, kDepth>(t, false, chunk);
}
