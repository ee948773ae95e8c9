// The processor's row of Ops: opens a kernel row by name, keeps weights, and owns a session's memory, one allocation that
// holds activations, keys and values and all scratch. Everything a step does is handed to the parts of this folder.
#include "ops.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "cpu/attention.h"
#include "cpu/experts.h"
#include "cpu/observer.h"
#include "cpu/peak.h"
#include "cpu/propose.h"
#include "error.h"

namespace ld {

struct Device {
  const KernelRow* row;
  Pool pool;  // packs weights
  PackedMemory weights;
  Footprint footprint{};
};

struct Weight {
  Tensor table;                          // gather: a view of the file
  std::unique_ptr<PackedMatrix> matrix;  // multiply
};

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr int kEmbedRows = 8, kApplyRows = 8, kMeanColumns = 64;
constexpr int kOutputs = 8;  // handed to linear() at a time
constexpr size_t kLargestBlock = 256;
constexpr int kMostRows = 16;

// Zeroed memory at a 2 MiB boundary, on huge pages where the system has them.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    void* got = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) {
      throw Error(LD_MEMORY, text("a session of %zu MiB does not fit the memory; ask for fewer slots or positions",
                                  (bytes >> 20) + 1));
    }
    mapped_ = got;
    const uintptr_t address = reinterpret_cast<uintptr_t>(got);
    data_ = reinterpret_cast<void*>((address + kPage - 1) / kPage * kPage);
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: nothing depends on it
#endif
  }
  ~Memory() {
    allow_access(mapped_, bytes_ + kPage);  // whoever is given these addresses next
    munmap(mapped_, bytes_ + kPage);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  size_t bytes_;
  void *mapped_, *data_;
};

// Everything of a context that lies in its memory.
struct Layout {
  Layout(Arena arena, const ContextShape& shape, int threads)
      : linear_memory(arena.take<uint8_t>(linear_scratch_bytes(pair_rows(shape), shape.max_k, threads))),
        attention(&arena, shape, threads),
        experts(&arena, shape, threads),
        head(&arena, shape, threads) {
    for (int i = 0; i < static_cast<int>(Buffer::count); ++i) {
      const Buffer which = static_cast<Buffer>(i);
      buffers[i] = arena.take<float>(shape.rows_of(which), shape.width_of(which));
    }
    applied_stride = shape.max_k;
    applied = arena.take<float>(threads, applied_stride);
    bytes = arena.used();
  }
  void* linear_memory;
  Attention attention;
  ExpertBuffers experts;
  Head head;
  float* buffers[static_cast<int>(Buffer::count)];
  float* applied;  // a row per thread
  ptrdiff_t applied_stride;
  size_t bytes;
};

int threads_of(const ContextShape& shape) { return shape.threads ? shape.threads : available_threads(); }

size_t layout_bytes(const ContextShape& shape, int threads) { return Layout(Arena(nullptr), shape, threads).bytes; }

}  // namespace

struct Context {
  Context(const KernelRow* kernel_row, const ContextShape& shape)
      : row(kernel_row),
        pool(threads_of(shape)),
        memory(layout_bytes(shape, pool.threads())),
        layout(Arena(memory.data()), shape, pool.threads()),
        linear(shape.math, pair_rows(shape), shape.max_k, pool.threads(), layout.linear_memory),
        observer(kernel_row, &pool),
        max_k(shape.max_k) {}

  const KernelRow* row;
  Pool pool;
  Memory memory;
  Layout layout;
  LinearScratch linear;
  Observer observer;
  int max_k;
};

namespace {

const KernelRow* find_row(const char* isa) {
  int count;
  const KernelRow* rows = kernel_rows(&count);
  std::string known;
  for (int i = 0; i < count; ++i) {
    if (isa ? strcmp(rows[i].name, isa) == 0 && rows[i].supported() : rows[i].supported()) return &rows[i];
    known += std::string(i ? ", " : "") + rows[i].name + (rows[i].supported() ? "" : " (not on this processor)");
  }
  throw Error(LD_INVALID, text("isa '%.64s' cannot be used here; known: %s", isa, known.c_str()));
}

Device* open(const DeviceOptions& options) {
  const KernelRow* row = find_row(options.isa);
  return new Device{row, Pool(options.plan ? 1 : options.threads), PackedMemory(options.plan)};
}

void close(Device* device) { delete device; }

const char* isa(const Device* device) { return device->row->name; }

Peak measure_peak(Device* device, double seconds) {
  const KernelRow& row = *device->row;
  Pool& pool = device->pool;
  return {pool.threads(), int8_peak(row, pool, seconds / 3), f32_peak(row, pool, seconds / 3),
          memory_peak(row, pool, seconds / 3)};
}

void memory(const Device*, size_t* free, size_t* total) { *free = *total = SIZE_MAX; }

Weight* pack(Device* device, const Tensor& tensor, Use use) {
  auto weight = std::make_unique<Weight>();
  Footprint& footprint = device->footprint;
  weight->table = tensor;
  if (use == Use::multiply) {
    weight->matrix.reset(PackedMatrix::pack(*device->row, tensor, device->pool, &device->weights));
    footprint.weights = device->weights.resident();
    footprint.packing = std::max(footprint.packing, footprint.weights + tensor.data.size());
  } else if (!tensor.type->decode || tensor.type->block > kLargestBlock) {
    throw Error(LD_FILE, text("%.*s: type %s cannot be run; convert the model to another type",
                              static_cast<int>(tensor.name.size()), tensor.name.data(), tensor.type->name));
  } else {
    footprint.tables += tensor.data.size();
  }
  return weight.release();
}

void release(Weight* weight) { delete weight; }

size_t weight_bytes(const Weight* weight) { return weight->matrix ? weight->matrix->bytes() : 0; }

Footprint footprint(const Device* device) { return device->footprint; }

constexpr std::align_val_t kVectorAlign{64};

float* upload(Device*, const float* values, size_t count) {
  float* vector = static_cast<float*>(operator new(count * sizeof(float), kVectorAlign, std::nothrow));
  if (!vector) throw Error(LD_MEMORY, text("%zu bytes of memory could not be had", count * sizeof(float)));
  std::copy(values, values + count, vector);
  return vector;
}

void release_vector(float* vector) { operator delete(vector, kVectorAlign); }

size_t plan(const Device*, const ContextShape& shape) {
  return layout_bytes(shape, threads_of(shape)) + sizeof(Context);
}

Context* create(Device* device, const ContextShape& shape) {
  if (device->weights.counts_only()) {
    throw Error(LD_INVALID, "the model was opened to plan its memory; open it without that to compute");
  }
  return new Context(device->row, shape);
}

void destroy(Context* context) { delete context; }

float* buffer(Context* context, Buffer which) { return context->layout.buffers[static_cast<int>(which)]; }

void receive(Context*, const float* from, size_t count, float* to) { std::copy_n(from, count, to); }

int threads(const Context* context) { return context->pool.threads(); }

void observe(Context* context, const Observed* sums) { context->observer.observe(sums, context->max_k); }

void embed(Context* context, const Weight* weight, const int32_t* ids, int rows, bool add, float scale, float* out) {
  const Tensor& table = weight->table;
  const size_t width = table.columns(), block = table.type->block, block_bytes = table.type->block_bytes;
  context->pool.parallel((rows + kEmbedRows - 1) / kEmbedRows, [&](int task, int) {
    for (int r = task * kEmbedRows; r < std::min((task + 1) * kEmbedRows, rows); ++r) {
      const size_t id = ids ? ids[r] : 0;
      const uint8_t* source = table.data.data() + id * (width / block) * block_bytes;
      float* row = out + static_cast<size_t>(r) * width;
      if (!add) {
        table.type->decode(source, row, width);
        for (size_t i = 0; scale != 1 && i < width; ++i) row[i] *= scale;
        continue;
      }
      const size_t step = kLargestBlock / block * block;
      for (size_t i = 0; i < width; i += step) {
        float values[kLargestBlock];
        const size_t n = std::min(step, width - i);
        table.type->decode(source + i / block * block_bytes, values, n);
        for (size_t j = 0; j < n; ++j) row[i + j] += values[j] * scale;
      }
    }
  });
}

void linear(Context* context, const LinearInput& input, int rows, const LinearOutput* outputs, int n_outputs) {
  for (int first = 0; first < n_outputs; first += kOutputs) {
    PackedOutput packed[kOutputs];
    const Weight* weights[kOutputs];
    const int count = std::min(kOutputs, n_outputs - first);
    for (int i = 0; i < count; ++i) {
      const LinearOutput& o = outputs[first + i];
      packed[i] = {o.weight->matrix.get(), o.bias, o.y, o.stride, o.add};
      weights[i] = o.weight;
    }
    if (context->observer.active()) context->observer.add(input, 0, rows, {weights, static_cast<size_t>(count)});
    linear(*context->row, context->pool, &context->linear, input, rows, packed, count);
  }
}

void apply(Context* context, const LinearInput& input, int rows, bool add, float* y) {
  const VectorKernels& kernels = *context->row->vector;
  context->pool.parallel((rows + kApplyRows - 1) / kApplyRows, [&](int task, int thread) {
    for (int r = task * kApplyRows; r < std::min((task + 1) * kApplyRows, rows); ++r) {
      float* to = y + static_cast<ptrdiff_t>(r) * input.stride;
      if (!add) {
        kernels.produce(input, r, to);
        continue;
      }
      float* made = context->layout.applied + thread * context->layout.applied_stride;
      kernels.produce(input, r, made);
      for (int i = 0; i < input.width; ++i) to[i] += made[i];
    }
  });
}

void mean(Context* context, const float* x, int width, int rows, float* y) {
  context->pool.parallel((width + kMeanColumns - 1) / kMeanColumns, [&](int task, int) {
    const int first = task * kMeanColumns, count = std::min(kMeanColumns, width - first);
    double sum[kMeanColumns] = {};
    for (int r = 0; r < rows; ++r) {
      const float* row = x + static_cast<ptrdiff_t>(r) * width + first;
      for (int i = 0; i < count; ++i) sum[i] += row[i];
    }
    for (int i = 0; i < count; ++i) y[first + i] = static_cast<float>(sum[i] / rows);
  });
}

void scale(Context* context, float* x, int rows, int width, float factor) {
  context->pool.parallel((rows + kApplyRows - 1) / kApplyRows, [&](int task, int) {
    const ptrdiff_t first = static_cast<ptrdiff_t>(task) * kApplyRows * width;
    const ptrdiff_t last = std::min<ptrdiff_t>(first + ptrdiff_t{kApplyRows} * width, ptrdiff_t{rows} * width);
    for (ptrdiff_t i = first; i < last; ++i) x[i] *= factor;
  });
}

void experts(Context* context, const LinearInput& input, int rows, const Experts& which, float* y) {
  auto matrix = [](const Weight* weight) -> const PackedMatrix& { return *weight->matrix; };
  const PackedExperts packed = {which.rule, which.count, which.router->matrix.get(), which.bias, which.gain, which.gate,
                                which.up,   which.down,  which.activation,           matrix};
  LinearInput routed = input;
  if (which.router_norm.kind != NormKind::none) routed.norm = which.router_norm;
  if (context->observer.active()) context->observer.add(routed, 0, rows, {&which.router, 1});
  context->layout.experts.run(*context->row, context->pool, &context->linear, routed, input, rows, packed,
                              &context->observer, y);
}

bool begin_step(Context*, const Rows&) { return false; }
bool end_step(Context*, bool) { return true; }

void store_kv(Context* context, const AttentionLayer& layer, float* qkv, int stride, const RowInfo* rows, int n_rows) {
  context->layout.attention.store(*context->row->vector, context->pool, layer, qkv, stride, rows, n_rows);
}

void read_kv(Context* context, int layer, int slot, int length, float* k, float* v) {
  context->layout.attention.read(layer, slot, length, k, v);
}

void write_kv(Context* context, int layer, int slot, int length, const float* k, const float* v) {
  context->layout.attention.write(layer, slot, length, k, v);
}

void attention(Context* context, const AttentionLayer& layer, const float* qkv, int stride, const RowInfo* rows,
               int n_rows, float* out) {
  context->layout.attention.attend(*context->row->vector, context->pool, layer, qkv, stride, rows, n_rows, out);
}

PackedHead packed_head(Context* context, const OutputLayer& head) {
  const Tensor* table = head.table ? &head.table->table : nullptr;
  return {head.weight->matrix.get(), head.bias, head.cap, table, head.table_scale, buffer(context, Buffer::feedback)};
}

int propose(Context* context, const LinearInput& input, const OutputLayer& head, const ScoreRow* score, int rows) {
  if (context->observer.active()) context->observer.add(input, 0, rows, {&head.weight, 1});
  return context->layout.head.propose(*context->row, context->pool, &context->linear, input, packed_head(context, head),
                                      score, rows);
}

int logits(Context* context, const LinearInput& input, int rows, const OutputLayer& head, float* out) {
  if (context->observer.active()) context->observer.add(input, 0, rows, {&head.weight, 1});
  return context->layout.head.logits(*context->row, context->pool, &context->linear, input, packed_head(context, head),
                                     rows, out);
}

}  // namespace

const Ops& cpu_ops() {
  static const Ops ops = {"cpu",   open,         close,     isa,     measure_peak,   memory,     pack,
                          release, weight_bytes, footprint, upload,  release_vector, plan,       create,
                          destroy, buffer,       receive,   threads, observe,        begin_step, end_step,
                          embed,   linear,       apply,     mean,    scale,          experts,    store_kv,
                          read_kv, write_kv,     attention, propose, logits};
  return ops;
}

const IsaRow* isa_rows(int* count) {
  struct Rows {
    int count;
    IsaRow row[kMostRows];
  };
  static const Rows rows = [] {
    Rows result{};
    const KernelRow* kernels = kernel_rows(&result.count);
    result.count = std::min(result.count, kMostRows);
    for (int i = 0; i < result.count; ++i) result.row[i] = {kernels[i].name, kernels[i].supported};
    return result;
  }();
  *count = rows.count;
  return rows.row;
}

}  // namespace ld
