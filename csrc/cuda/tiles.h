// What int8 products on tensor cores share: three shapes of tile by the number of rows, where a thread's fragments lie in
// them, and int32 sums that are floats after one subtraction. Private to int8.cu and fold.cu.
#pragma once

#include "cuda/product.h"

namespace ld::cuda {

constexpr int kBlock = 32, kWords = kBlock / 4;  // values and words of a block
constexpr int kThreads = 256;

// Eight warps, kDown by 8 / kDown, each with kRowTiles by kColumnTiles tiles of 16 x 8.
template <int kDown, int kRowTiles_, int kColumnTiles_>
struct Tiles {
  static constexpr int kAcross = kThreads / kWarp / kDown, kRowTiles = kRowTiles_, kColumnTiles = kColumnTiles_;
  static constexpr int kRows = kDown * kRowTiles * 16, kColumns = kAcross * kColumnTiles * 8;
  static constexpr int kBlocks = kThreads / kColumns;  // of 32 values of k at a time
  static constexpr int kPitch = kBlocks * kWords + 4;  // words; fragments are read without bank conflicts
};
using LargeTiles = Tiles<2, 4, 4>;   // 128 x 128
using MediumTiles = Tiles<2, 2, 2>;  // 64 x 64
using SmallTiles = Tiles<1, 1, 1>;   // 16 x 64

// Calls use.template operator()<Tile>() with the tile for so many rows.
template <class Use>
void with_tiles(int most_rows, Use use) {
  if (most_rows <= SmallTiles::kRows) return use.template operator()<SmallTiles>();
  if (most_rows <= MediumTiles::kRows) return use.template operator()<MediumTiles>();
  use.template operator()<LargeTiles>();
}

// int32 sums begin here, which makes their bits those of a float: 1.5 * 2^23 plus the sum, as long as it is below 2^22.
constexpr int32_t kSumZero = 0x4b400000;
constexpr float kFloatZero = 12582912.0f;

__device__ inline float sum_of(int32_t bits) { return float_from_bits(static_cast<uint32_t>(bits)) - kFloatZero; }

// A thread's part of a tile: value i of 16 x 8 tile (r, c) is that of row(r, i) and column(c, i).
template <class Tile>
struct Mine {
  int group, within, first_row, first_column;
  __device__ explicit Mine(int thread) {
    const int lane = thread % kWarp, warp = thread / kWarp;
    group = lane / 4;
    within = lane % 4;
    first_row = warp / Tile::kAcross * Tile::kRowTiles * 16;
    first_column = warp % Tile::kAcross * Tile::kColumnTiles * 8;
  }
  __device__ int row(int r, int i) const { return first_row + r * 16 + group + i / 2 * 8; }
  __device__ int column(int c, int i) const { return first_column + c * 8 + within * 2 + i % 2; }

  // Fragments of a block of weights and of rows, whose halves begin at these words of a line.
  template <int kPitch>
  __device__ void weights(const uint32_t (*w)[kPitch], int first, int second,
                          uint32_t (&b)[Tile::kColumnTiles][2]) const {
    LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) {
      const uint32_t* from = w[first_column + c * 8 + group] + within;
      b[c][0] = from[first];
      b[c][1] = from[second];
    }
  }
  template <int kPitch>
  __device__ void rows(const uint32_t (*x)[kPitch], int first, int second, int r, uint32_t (&a)[4]) const {
    const uint32_t *upper = x[row(r, 0)] + within, *lower = upper + 8 * kPitch;
    a[0] = upper[first];
    a[1] = lower[first];
    a[2] = upper[second];
    a[3] = lower[second];
  }

  __device__ void put(const Product& p, int row0, int last, int column0,
                      const float (&sum)[Tile::kRowTiles][Tile::kColumnTiles][4]) const {
    LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c)
        LD_UNROLL for (int i = 0; i < 4; ++i) {
      if (row0 + row(r, i) < last && column0 + column(c, i) < p.w.n)
        cuda::put(p, row0 + row(r, i), column0 + column(c, i), sum[r][c][i]);
    }
  }
};

}  // namespace ld::cuda
