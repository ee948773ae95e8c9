// Matrix products on tensor cores of 16-bit floats, with float32 sums. Weights in float16 or bfloat16 are copied to shared
// memory as they are. Rows come split into parts, one product of tensor cores for each, whose sum is the float32 value:
// three of bfloat16, exactly from 2^-109 on, or two of float16 and a power of two for 32 values, to 22 bits and 2^-39 of
// their largest; or one, rounded to bfloat16, where the weights were rounded too.
// Sums of 32 values of k begin at zero and are added up in float32, ascending, in every shape of tile: a result depends on
// nothing but its row, and tensor cores, which cut what they add, never add long. No split along k.
#include "cuda/product.h"

namespace ld::cuda {
namespace {

constexpr int kThreads = 256, kBlock = kSplitBlock;
constexpr int kSixteens = kBlock * 2 / 16;  // of sixteen bytes, in a part of a block

// ---- splitting rows ----

struct Halves {
  static constexpr int kParts = 2;
  static constexpr bool kScaled = true;
  __device__ static void split(float x, uint16_t (&part)[kParts]) {
    part[0] = half_bits(x);
    part[1] = half_bits(x - half_value(part[0]));
  }
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_halves(c, a, b);
  }
};

template <int kParts_>
struct Bfloats {
  static constexpr int kParts = kParts_;
  static constexpr bool kScaled = false;
  __device__ static void split(float x, uint16_t (&part)[kParts]) {
    if constexpr (kParts == 1) {
      part[0] = static_cast<uint16_t>(bfloat_pair(x, 0));
    } else {  // 8 bits each of 24; what is left of infinity is NaN
      LD_UNROLL for (int i = 0; i < kParts; ++i) {
        part[i] = static_cast<uint16_t>(bits_of(x) >> 16);
        x -= float_from_bits(bits_of(x) & 0xffff0000u);
      }
    }
  }
  __device__ static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_tile(c, a, b);
  }
};

// A lane takes four values, eight lanes a block.
template <class Parts>
__global__ void split_kernel(const float* x, ptrdiff_t stride, int k, Split out) {
  constexpr int kLanes = kBlock / 4;
  const int row = static_cast<int>(blockIdx.x), blocks = split_blocks(k);
  const float* from = x + row * stride;
  const int padded = (blocks * kLanes + kThreads - 1) / kThreads * kThreads;  // whole warps take part in shuffles
  for (int four = threadIdx.x; four < padded; four += kThreads) {
    float values[4];
    LD_UNROLL for (int j = 0; j < 4; ++j) values[j] = four * 4 + j < k ? from[four * 4 + j] : 0;
    const size_t block = static_cast<size_t>(row) * blocks + four / kLanes;
    const bool mine = four < blocks * kLanes;
    if constexpr (Parts::kScaled) {
      uint32_t largest = 0;  // as bits, so that NaN and infinity come out on top
      LD_UNROLL for (int j = 0; j < 4; ++j) largest = max(largest, bits_of(values[j]) & 0x7fffffffu);
      for (int step = 1; step < kLanes; step *= 2) largest = max(largest, __shfl_xor_sync(kWholeWarp, largest, step));
      // The largest becomes 2^14 to 2^15, as far above float16's smallest steps as it can be.
      const bool finite = largest < 0x7f800000u;
      const uint32_t exponent = max(largest >> 23, 15u);
      LD_UNROLL for (int j = 0; j < 4; ++j) values[j] =
          finite ? values[j] * float_from_bits((268 - exponent) << 23) : 0;
      if (mine && four % kLanes == 0) out.scale[block] = finite ? float_from_bits((exponent - 14) << 23) : NAN;
    }
    if (!mine) continue;
    uint16_t parts[4][Parts::kParts];
    LD_UNROLL for (int j = 0; j < 4; ++j) Parts::split(values[j], parts[j]);
    LD_UNROLL for (int part = 0; part < Parts::kParts; ++part) {
      uint32_t* to = out.words + ((block * Parts::kParts + part) * kBlock + four % kLanes * 4) / 2;
      to[0] = parts[0][part] | static_cast<uint32_t>(parts[1][part]) << 16;
      to[1] = parts[2][part] | static_cast<uint32_t>(parts[3][part]) << 16;
    }
  }
}

// ---- multiplying ----

// Eight warps, kDown by 8 / kDown, each with kRowTiles by kColumnTiles tiles of 16 x 8; kBlocks blocks of k at a time. A
// processor holds kTogether blocks of threads at least.
template <int kDown, int kRowTiles_, int kColumnTiles_, int kBlocks_, int kTogether_ = 2>
struct Tiles {
  static constexpr int kAcross = kThreads / kWarp / kDown, kRowTiles = kRowTiles_, kColumnTiles = kColumnTiles_;
  static constexpr int kRows = kDown * kRowTiles * 16, kColumns = kAcross * kColumnTiles * 8, kBlocks = kBlocks_;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr int kTogether = 1;  // for want of shared memory
#else
  static constexpr int kTogether = kTogether_;
#endif
};
using LargeTiles = Tiles<4, 2, 8, 1, 1>;  // 128 x 128
using MediumTiles = Tiles<2, 2, 4, 1>;    // 64 x 128
using NarrowTiles = Tiles<2, 2, 2, 2>;    // 64 x 64
using SmallTiles = Tiles<1, 1, 1, 4>;     // 16 x 64
constexpr unsigned kManyBlocks = 128;     // are as many as a large GPU has processors

// What is in shared memory of one step along k. Of lines of 64 bytes each the sixteens are exchanged so that eight lines'
// sixteens at the same place lie in different banks.
template <class Parts, class Tile>
struct Stage {
  using Line = uint4[kSixteens];
  Line x[Tile::kBlocks][Parts::kParts][Tile::kRows];
  Line w[Tile::kBlocks][Tile::kColumns];
  float scale[Tile::kBlocks][Tile::kRows];
};
__device__ inline int place_of(int line, int sixteen) { return sixteen ^ (line >> 1 & 3); }

// Weights go to shared memory by the hardware where every row begins at a multiple of 16 bytes.
template <class Stage>
__device__ inline void fetch_weights(Stage& stage, const Matrix& w, const uint8_t* data, int column0, int first) {
  constexpr int kBlocks = sizeof stage.w / sizeof stage.w[0];
  constexpr int kColumns = sizeof stage.w[0] / sizeof stage.w[0][0];
  const bool aligned = w.k % 8 == 0;
  LD_ROLL for (int i = threadIdx.x; i < kColumns * kBlocks * kSixteens; i += kThreads) {
    const int column = i / (kBlocks * kSixteens), block = i / kSixteens % kBlocks, sixteen = i % kSixteens;
    const int k = (first + block) * kBlock + sixteen * 8;
    const bool present = column0 + column < w.n && k < w.k;
    const uint8_t* from = data + (present ? (column0 + column) * w.row_bytes + static_cast<size_t>(k) * 2 : 0);
    uint4& to = stage.w[block][column][place_of(column, sixteen)];
    if (aligned) {
      copy_sixteen(&to, from, present);
    } else {
      uint32_t words[4] = {};
      LD_UNROLL for (int j = 0; j < 8; ++j) {
        uint16_t value = 0;
        if (present && k + j < w.k) memcpy(&value, __builtin_assume_aligned(from + 2 * j, 2), 2);
        words[j / 2] |= static_cast<uint32_t>(value) << j % 2 * 16;
      }
      to = {words[0], words[1], words[2], words[3]};
    }
  }
}

// While a tile is multiplied the next one is on its way to the other stage.
template <class Parts, class Tile>
__global__ void __launch_bounds__(kThreads, Tile::kTogether) tensor_kernel(Product p, Rows rows) {
  constexpr int kParts = Parts::kParts;
  auto& stages = dynamic_shared<Stage<Parts, Tile>[2]>();
  const Share share = rows.share(p);
  const int row0 = share.first + static_cast<int>(blockIdx.y) * Tile::kRows;
  const int column0 = static_cast<int>(blockIdx.x) * Tile::kColumns;
  if (row0 >= share.last) return;  // the whole block
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp, group = lane / 4, within = lane % 4;
  const int warp_row = warp / Tile::kAcross * Tile::kRowTiles * 16;
  const int warp_column = warp % Tile::kAcross * Tile::kColumnTiles * 8;
  const int blocks = split_blocks(p.w.k), row_count = min(Tile::kRows, share.last - row0);
  const auto fetch = [&](int first, Stage<Parts, Tile>& stage) {
    for (int i = thread; i < Tile::kRows * Tile::kBlocks * kParts * kSixteens; i += kThreads) {
      const int row = i / (Tile::kBlocks * kParts * kSixteens), block = i / (kParts * kSixteens) % Tile::kBlocks;
      const int part = i / kSixteens % kParts, sixteen = i % kSixteens;
      const bool present = row < row_count && first + block < blocks;
      const size_t at = present ? rows.input(row0 + row) * static_cast<size_t>(blocks) + first + block : 0;
      copy_sixteen(&stage.x[block][part][row][place_of(row, sixteen)],
                   p.split.words + (at * kParts + part) * (kBlock / 2) + sixteen * 4, present);
    }
    if constexpr (Parts::kScaled) {
      for (int i = thread; i < Tile::kRows * Tile::kBlocks; i += kThreads) {
        const int row = i / Tile::kBlocks, block = i % Tile::kBlocks;
        const bool present = row < row_count && first + block < blocks;
        const size_t at = present ? rows.input(row0 + row) * static_cast<size_t>(blocks) + first + block : 0;
        copy_four(&stage.scale[block][row], p.split.scale + at, present);
      }
    }
    fetch_weights(stage, p.w, share.data, column0, first);
  };
  const auto arrive = [] {
    wait_copies();
    __syncthreads();
  };
  float sum[Tile::kRowTiles][Tile::kColumnTiles][4] = {};
  fetch(0, stages[0]);
  arrive();
  for (int first = 0, half = 0; first < blocks; first += Tile::kBlocks, half = 1 - half) {
    const bool more = first + Tile::kBlocks < blocks;
    if (more) fetch(first + Tile::kBlocks, stages[1 - half]);
    const Stage<Parts, Tile>& stage = stages[half];
    const int count = min(Tile::kBlocks, blocks - first);
    LD_ROLL for (int block = 0; block < count; ++block) {
      uint32_t b[Tile::kColumnTiles][4];  // both halves of the block
      LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) {
        load_matrices(b[c], &stage.w[block][warp_column + c * 8 + lane % 8][place_of(lane % 8, lane / 8)]);
      }
      LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) {
        uint32_t a[2][kParts][4];
        LD_UNROLL for (int step = 0; step < 2; ++step) LD_UNROLL for (int part = 0; part < kParts; ++part) {
          load_matrices(
              a[step][part],
              &stage.x[block][part][warp_row + r * 16 + lane % 16][place_of(lane % 16, step * 2 + lane / 16)]);
        }
        const float* scale = &stage.scale[block][warp_row + r * 16 + group];
        float short_sum[Tile::kColumnTiles][4] = {};
        LD_UNROLL for (int part = kParts - 1; part >= 0; --part) {  // small ones first
          LD_UNROLL for (int step = 0; step < 2; ++step) LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) {
            Parts::multiply(short_sum[c], a[step][part], {b[c][step * 2], b[c][step * 2 + 1]});
          }
        }
        LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c) LD_UNROLL for (int i = 0; i < 4; ++i) {
          float& y = sum[r][c][i];
          y = Parts::kScaled ? fmaf(short_sum[c][i], scale[i / 2 * 8], y) : y + short_sum[c][i];
        }
      }
    }
    if (more) arrive();  // and this one has been read
  }
  LD_UNROLL for (int r = 0; r < Tile::kRowTiles; ++r) LD_UNROLL for (int c = 0; c < Tile::kColumnTiles; ++c)
      LD_UNROLL for (int i = 0; i < 4; ++i) {
    const int row = row0 + warp_row + r * 16 + group + i / 2 * 8;
    const int column = column0 + warp_column + c * 8 + within * 2 + i % 2;
    if (row < share.last && column < p.w.n) put(p, row, column, sum[r][c][i]);
  }
}

template <class Parts, class Tile>
void launch(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  using Stages = Stage<Parts, Tile>[2];
  // Of a block at most, on sm_75, whose tensor cores have no bfloat16, and on sm_86.
  static_assert(sizeof(Stages) <= (Parts::kScaled ? 64 : 99) << 10);
  const dim3 grid(parts(product.w.n, Tile::kColumns), parts(most_rows, Tile::kRows), experts);
  LD_LAUNCH_SHARED(Stages, (tensor_kernel<Parts, Tile>), grid, kThreads, stream, product, rows);
}

template <class Parts>
void launch_as_fits(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  const unsigned large = parts(product.w.n, LargeTiles::kColumns) * parts(most_rows, LargeTiles::kRows) * experts;
  const auto use = most_rows <= SmallTiles::kRows    ? launch<Parts, SmallTiles>
                   : most_rows <= NarrowTiles::kRows ? launch<Parts, NarrowTiles>
                   : large < kManyBlocks             ? launch<Parts, MediumTiles>
                                                     : launch<Parts, LargeTiles>;
  use(stream, product, rows, most_rows, experts);
}

// Calls use(Parts) for a form.
template <class Use>
void with_parts(Form form, Use use) {
  if (form == Form::halves) return use(Halves{});
  if (form == Form::bfloats) return use(Bfloats<3>{});
  use(Bfloats<1>{});
}

}  // namespace

void split(cudaStream_t stream, Form form, const float* x, ptrdiff_t stride, int k, int rows, const Split& out) {
  with_parts(form, [&]<class Parts>(Parts) {
    LD_LAUNCH(split_kernel<Parts>, dim3(rows), kThreads, stream, x, stride, k, out);
  });
}

void multiply_split(cudaStream_t stream, const Product& product, const Rows& rows, int most_rows, int experts) {
  with_parts(product.form,
             [&]<class Parts>(Parts) { launch_as_fits<Parts>(stream, product, rows, most_rows, experts); });
}

}  // namespace ld::cuda
