// The GPU's row of Ops: weights in device memory as they lie in the file, one allocation per session for activations,
// keys and values and scratch, and every operation as launches on the session's stream. Nothing waits for the device but
// what brings results back (propose, logits, the drift of values).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/arena.h"
#include "cpu/philox.h"
#include "cuda/decode.h"
#include "cuda/kernels.h"
#include "plugin.h"

namespace ld {
namespace {

// Thrown and caught within this library.
struct Failure {
  ld_status status;
  std::string message;
};

thread_local Failure last_failure{LD_OK, ""};

[[noreturn]] void refuse(ld_status status, const std::string& message) { throw Failure{status, message}; }

// An operation as the core calls it: what it throws is kept for take_failure().
template <auto function>
struct Caught;
template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Caught<function> {
  static Result call(Arguments... arguments) {
    try {
      return function(static_cast<Arguments>(arguments)...);
    } catch (const Failure& failure) {
      last_failure = failure;
    } catch (const std::bad_alloc&) {
      last_failure = {LD_MEMORY, "not enough memory"};
    } catch (const std::exception& error) {
      last_failure = {LD_INTERNAL, error.what()};
    }
    if constexpr (!std::is_void_v<Result>) return Result{};
  }
};

ld_status take_failure(const char** message) {
  static thread_local std::string told;
  const ld_status status = last_failure.status;
  if (status != LD_OK) told = last_failure.message;
  last_failure.status = LD_OK;
  *message = told.c_str();
  return status;
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) refuse(LD_INTERNAL, text("the GPU failed while %s: %s", what, cudaGetErrorString(status)));
}

// Device memory, owned.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (cudaMalloc(&data_, bytes) != cudaSuccess) {
      cudaGetLastError();
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      refuse(LD_MEMORY,
             text("%zu MiB of GPU memory could not be had, %zu of %zu MiB are free; a smaller type, fewer slots "
                  "or shorter canvases need less",
                  (bytes >> 20) + 1, free >> 20, total >> 20));
    }
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T = uint8_t>
  T* data() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

constexpr int kMostTop = 64;
constexpr size_t kLogitBytes = size_t{256} << 20;  // of logits and exponentials that are held at a time

}  // namespace

struct Device {
  int index = 0;
  bool tensor_cores = false;
  bool plan = false;
  std::string isa;
  // Tables by the file's bytes, which outlive them: a head that is tied to one is there once.
  std::map<const uint8_t*, std::weak_ptr<Memory>> tables;
  Footprint footprint{};
};

struct Weight {
  cuda::Matrix matrix;
  std::shared_ptr<Memory> memory;
  size_t bytes;
};

namespace {

// Everything of a context that lies in its memory.
struct Layout {
  Layout(Arena arena, const ContextShape& s) {
    const size_t pairs = static_cast<size_t>(s.rows) * s.experts_used;
    const size_t inputs = std::max<size_t>({static_cast<size_t>(s.rows), static_cast<size_t>(s.score_rows), pairs});
    for (int i = 0; i < static_cast<int>(Buffer::count); ++i)
      buffers[i] = arena.take<float>(i == static_cast<int>(Buffer::head) ? s.score_rows : s.rows, s.width[i]);
    made = arena.take<float>(inputs, s.max_k);
    const size_t state = static_cast<size_t>(s.layers) * s.slots * s.slot_length * s.kv_heads;
    keys = arena.take<float>(state, s.head_dim);
    values = arena.take<float>(state, s.head_dim);
    angles = arena.take<float>(s.rows, s.head_dim);
    drift = arena.take<float>(s.rows);
    for (cuda::Row*& each : rows) each = arena.take<cuda::Row>(s.rows);
    ids = arena.take<int32_t>(std::max(s.rows, s.score_rows));
    if (s.experts > 0) {
      router = arena.take<float>(s.rows, s.experts);
      routing.scores = arena.take<float>(s.rows, 2 * s.experts);
      routing.chosen = arena.take<int32_t>(pairs);
      routing.weights = arena.take<float>(pairs);
      routing.begin = arena.take<int32_t>(s.experts + 1);
      routing.row_of = arena.take<int32_t>(pairs);
      routing.pair_of = arena.take<int32_t>(pairs);
      hidden = arena.take<float>(pairs, 2 * s.expert_dim);
      expert_out = arena.take<float>(pairs, s.width[static_cast<int>(Buffer::x)]);
    }
    chunk = static_cast<int>(std::clamp<size_t>(kLogitBytes / (2 * sizeof(float) * s.vocab), 2, s.score_rows + 1));
    logits = arena.take<float>(chunk, s.vocab);
    exponentials = arena.take<float>(chunk, s.vocab);
    tasks = arena.take<cuda::ScoreTask>(chunk);
    results.token = arena.take<int32_t>(chunk);
    results.probability = arena.take<float>(chunk);
    results.margin = arena.take<float>(chunk);
    results.entropy = arena.take<float>(chunk);
    results.alternative_token = arena.take<int32_t>(chunk, kMostTop);
    results.alternative_probability = arena.take<float>(chunk, kMostTop);
    results.bad = arena.take<int32_t>(chunk);
    bytes = arena.used();
  }
  float* buffers[static_cast<int>(Buffer::count)];
  float *made, *keys, *values, *angles, *drift;
  cuda::Row* rows[2];  // as all layers see them, and as those with a window do
  int32_t* ids;
  float *router = nullptr, *hidden = nullptr, *expert_out = nullptr;
  cuda::Routing routing{};
  int chunk;
  float *logits, *exponentials;
  cuda::ScoreTask* tasks;
  cuda::ScoreResults results;
  size_t bytes;
};

}  // namespace

struct Context {
  Context(Device* device_, const ContextShape& shape_)
      : device(device_),
        shape(shape_),
        memory(Layout(Arena(nullptr), shape_).bytes),
        layout(Arena(memory.data()), shape_) {
    check(cudaStreamCreate(&stream), "making a stream");
    state = {layout.keys, layout.values, shape.slots, shape.slot_length, shape.kv_heads, shape.head_dim};
    check(cudaMemsetAsync(memory.data(), 0, memory.bytes(), stream), "clearing a session");
  }
  ~Context() { cudaStreamDestroy(stream); }

  Device* device;
  ContextShape shape;
  Memory memory;
  Layout layout;
  cudaStream_t stream{};
  cuda::State state;
  struct {
    const RowInfo* from = nullptr;
    std::vector<cuda::Row> held;
  } rows[2];
  int next_rows = 0;
  std::map<const Weight* const*, std::unique_ptr<Memory>> expert_tables;  // device pointers to the experts' weights
  std::unique_ptr<Memory> lists;                                          // token lists of a propose call
};

namespace {

template <class T>
void to_device(Context* c, T* to, const T* from, size_t count) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, c->stream), "copying to it");
}

template <class T>
void to_host(Context* c, T* to, const T* from, size_t count) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, c->stream), "copying from it");
}

void finish(Context* c) {
  check(cudaStreamSynchronize(c->stream), "computing");
  check(cudaGetLastError(), "computing");
}

Device* open(const DeviceOptions& options) {
  auto device = std::make_unique<Device>();
  cudaDeviceProp properties;
  check(cudaSetDevice(device->index), "being chosen");
  check(cudaGetDeviceProperties(&properties, device->index), "being asked for its properties");
  device->tensor_cores = properties.major >= 8;
  device->plan = options.plan;
  device->isa = text("sm_%d%d", properties.major, properties.minor);
  if (options.isa != nullptr)
    refuse(LD_INVALID, text("isa '%.64s' is a row of CPU kernels, and this is a GPU; leave it out", options.isa));
  return device.release();
}

void close(Device* device) { delete device; }
const char* isa(const Device* device) { return device->isa.c_str(); }
Peak measure_peak(Device*, double) { return {}; }

Weight* pack(Device* device, const Tensor& tensor, Use use) {
  if (!cuda::has_format(tensor.type->type))
    refuse(LD_FILE, text("%.*s: type %s is not supported on the GPU", static_cast<int>(tensor.name.size()),
                         tensor.name.data(), tensor.type->name));
  if (use == Use::multiply && !tensor.type->finite(tensor.data.data(), tensor.columns() * tensor.rows()))
    refuse(LD_FILE, text("%.*s: a scale is not finite; the file is damaged", static_cast<int>(tensor.name.size()),
                         tensor.name.data()));
  auto weight = std::make_unique<Weight>();
  const size_t bytes = tensor.data.size();
  weight->matrix = {tensor.type->type, nullptr, static_cast<int>(tensor.rows()), static_cast<int>(tensor.columns()),
                    tensor.columns() / tensor.type->block * tensor.type->block_bytes};
  const auto kept = device->tables.find(tensor.data.data());
  if (kept != device->tables.end()) weight->memory = kept->second.lock();
  weight->bytes = 0;
  if (weight->memory == nullptr) {
    weight->bytes = bytes;
    device->footprint.weights += bytes;
    if (!device->plan) {
      weight->memory = std::make_shared<Memory>(bytes);
      check(cudaMemcpyAsync(weight->memory->data(), tensor.data.data(), bytes, cudaMemcpyHostToDevice, nullptr),
            "receiving weights");
      check(cudaStreamSynchronize(nullptr), "receiving weights");
      if (use == Use::gather) device->tables[tensor.data.data()] = weight->memory;
    }
  }
  if (weight->memory != nullptr) weight->matrix.data = weight->memory->data();
  device->footprint.packing = device->footprint.weights;
  return weight.release();
}

void release(Weight* weight) { delete weight; }
size_t weight_bytes(const Weight* weight) { return weight->bytes; }
Footprint footprint(const Device* device) { return device->footprint; }

float* upload(Device*, const float* values, size_t count) {
  void* vector = nullptr;
  if (cudaMalloc(&vector, count * sizeof(float)) != cudaSuccess)
    refuse(LD_MEMORY, text("%zu bytes of GPU memory could not be had", count * sizeof(float)));
  check(cudaMemcpyAsync(vector, values, count * sizeof(float), cudaMemcpyHostToDevice, nullptr), "receiving a vector");
  check(cudaStreamSynchronize(nullptr), "receiving a vector");
  return static_cast<float*>(vector);
}

void release_vector(float* vector) { cudaFree(vector); }

size_t plan(const Device*, const ContextShape& shape) { return Layout(Arena(nullptr), shape).bytes; }

Context* create(Device* device, const ContextShape& shape) {
  if (device->plan) refuse(LD_INVALID, "the model was opened to plan its memory; open it without that to compute");
  return new Context(device, shape);
}

void destroy(Context* context) { delete context; }
float* buffer(Context* context, Buffer which) { return context->layout.buffers[static_cast<int>(which)]; }
int threads(const Context*) { return 1; }

void observe(Context*, const Observed* sums) {
  if (sums != nullptr) refuse(LD_INVALID, "importance matrices are gathered on the processor; use the device cpu");
}

void embed(Context* c, const Weight* table, const int32_t* ids, int rows, bool add, float* out) {
  if (ids != nullptr) to_device(c, c->layout.ids, ids, rows);
  cuda::embed(c->stream, table->matrix, ids == nullptr ? nullptr : c->layout.ids, rows, add, out);
}

// The input with its picked rows in device memory.
LinearInput on_device(Context* c, LinearInput input, int rows) {
  if (input.pick != nullptr) {
    to_device(c, c->layout.ids, input.pick, rows);
    input.pick = c->layout.ids;
  }
  return input;
}

// What the products read: x itself where nothing is done to it.
struct Made {
  const float* x;
  ptrdiff_t stride;
};

Made produce(Context* c, const LinearInput& given, int rows) {
  const bool plain = given.pick == nullptr && given.norm.kind == NormKind::none &&
                     given.activation == Activation::none && given.up == nullptr;
  if (plain) return {given.x, given.stride};
  cuda::produce(c->stream, on_device(c, given, rows), rows, c->layout.made);
  return {c->layout.made, given.width};
}

void linear(Context* c, const LinearInput& input, int rows, const LinearOutput* outputs, int n_outputs) {
  const Made made = produce(c, input, rows);
  for (const LinearOutput* o = outputs; o < outputs + n_outputs; ++o) {
    cuda::multiply(c->stream, {o->weight->matrix, made.x, made.stride, o->bias, o->y, o->stride, o->add}, rows,
                   c->device->tensor_cores);
  }
}

void apply(Context* c, const LinearInput& input, int rows, bool add, float* y) {
  cuda::apply(c->stream, on_device(c, input, rows), rows, add, y);
}

const uint8_t* const* expert_table(Context* c, const Weight* const* weights, int count) {
  std::unique_ptr<Memory>& table = c->expert_tables[weights];
  if (table == nullptr) {
    std::vector<const uint8_t*> pointers;
    for (int i = 0; i < count; ++i) pointers.push_back(weights[i]->matrix.data);
    table = std::make_unique<Memory>(count * sizeof(pointers[0]));
    to_device(c, table->data<const uint8_t*>(), pointers.data(), pointers.size());
    finish(c);  // the vector goes
  }
  return table->data<const uint8_t*>();
}

void experts(Context* c, const LinearInput& input, int rows, const Experts& e, float* y) {
  const Layout& at = c->layout;
  const int used = e.rule.used, pairs = rows * used, width = e.down[0]->matrix.n, hidden = e.gate[0]->matrix.n;
  const bool cores = c->device->tensor_cores;
  const Made made = produce(c, input, rows);
  cuda::multiply(c->stream, {e.router->matrix, made.x, made.stride, nullptr, at.router, e.count, false}, rows, cores);
  cuda::route(c->stream, e.rule, e.count, at.router, e.bias, rows, at.routing);
  const auto product = [&](const Weight* const* weights, const float* x, ptrdiff_t stride, const int32_t* pick,
                           float* to, ptrdiff_t to_stride) {
    const cuda::Product common{weights[0]->matrix, x, stride, nullptr, to, to_stride, false};
    cuda::multiply_experts(c->stream, {common, expert_table(c, weights, e.count), at.routing.begin, pick, e.count},
                           rows, cores);
  };
  product(e.gate, made.x, made.stride, at.routing.row_of, at.hidden, 2 * hidden);
  product(e.up, made.x, made.stride, at.routing.row_of, at.hidden + hidden, 2 * hidden);
  const LinearInput gated{at.hidden, 2 * hidden, hidden, nullptr, Norm{}, e.activation, at.hidden + hidden};
  cuda::produce(c->stream, gated, pairs, at.made);
  product(e.down, at.made, hidden, nullptr, at.expert_out, width);
  cuda::gather_experts(c->stream, at.routing, used, at.expert_out, width, rows, input.width, y);
}

// The rows in device memory; they are sent once for all layers.
const cuda::Row* rows_of(Context* c, const RowInfo* rows, int n_rows) {
  std::vector<cuda::Row> now(n_rows);
  for (int r = 0; r < n_rows; ++r) now[r] = {rows[r].slot, rows[r].place, rows[r].lo, rows[r].hi, rows[r].position};
  for (int i = 0; i < 2; ++i) {
    const auto& held = c->rows[i].held;
    if (held.size() == now.size() && memcmp(held.data(), now.data(), now.size() * sizeof(cuda::Row)) == 0)
      return c->layout.rows[i];
  }
  const int place = c->next_rows;
  c->next_rows = 1 - place;
  c->rows[place].held = std::move(now);
  to_device(c, c->layout.rows[place], c->rows[place].held.data(), n_rows);
  return c->layout.rows[place];
}

void store_kv(Context* c, const AttentionLayer& layer, float* qkv, int stride, const RowInfo* rows, int n_rows) {
  const bool drifts = std::any_of(rows, rows + n_rows, [](const RowInfo& row) { return row.drift != nullptr; });
  cuda::store(c->stream, layer, c->state, c->shape.heads, qkv, stride, rows_of(c, rows, n_rows), n_rows,
              c->layout.angles, drifts ? c->layout.drift : nullptr);
  if (!drifts) return;
  std::vector<float> drift(n_rows);
  to_host(c, drift.data(), c->layout.drift, n_rows);
  finish(c);
  for (int r = 0; r < n_rows; ++r)
    if (rows[r].drift != nullptr) *rows[r].drift += drift[r];
}

// Keys or values of places [0, length): they lie side by side.
float* state_of(Context* c, float* all, int layer, int slot) {
  return all + (static_cast<size_t>(layer) * c->shape.slots + slot) * c->shape.slot_length * c->shape.kv_heads *
                   c->shape.head_dim;
}

void read_kv(Context* c, int layer, int slot, int length, float* k, float* v) {
  const size_t count = static_cast<size_t>(length) * c->shape.kv_heads * c->shape.head_dim;
  to_host(c, k, state_of(c, c->layout.keys, layer, slot), count);
  to_host(c, v, state_of(c, c->layout.values, layer, slot), count);
  finish(c);
}

void write_kv(Context* c, int layer, int slot, int length, const float* k, const float* v) {
  const size_t count = static_cast<size_t>(length) * c->shape.kv_heads * c->shape.head_dim;
  to_device(c, state_of(c, c->layout.keys, layer, slot), k, count);
  to_device(c, state_of(c, c->layout.values, layer, slot), v, count);
  finish(c);
}

void attention(Context* c, const AttentionLayer& layer, const float* qkv, int stride, const RowInfo* rows, int n_rows,
               float* out) {
  cuda::attend(c->stream, layer, c->state, c->shape.heads, qkv, stride, rows_of(c, rows, n_rows), n_rows, out);
}

// The lists of all samplings of a call, in one block of device memory.
class Lists {
 public:
  template <class T>
  size_t add(const T* values, size_t count) {
    const size_t at = bytes_.size();
    bytes_.resize(at + (count * sizeof(T) + 15) / 16 * 16);
    if (count > 0) memcpy(bytes_.data() + at, values, count * sizeof(T));
    return at;
  }
  const uint8_t* send(Context* c) {
    if (c->lists == nullptr || c->lists->bytes() < bytes_.size())
      c->lists = std::make_unique<Memory>(std::max<size_t>(bytes_.size(), 4096));
    to_device(c, c->lists->data(), bytes_.data(), bytes_.size());
    return c->lists->data();
  }

 private:
  std::vector<uint8_t> bytes_;
};

// The tasks of rows [first, first + count), whose lists are sent.
std::vector<cuda::ScoreTask> tasks_of(Context* c, const ScoreRow* score, int first, int count, int vocab) {
  struct Places {
    size_t forbidden, repeated, bias_token, bias;
  };
  Lists lists;
  std::map<const Sampling*, Places> placed;
  std::vector<size_t> allowed(count);
  for (int i = 0; i < count; ++i) {
    const Sampling& s = *score[first + i].sampling;
    if (placed.find(&s) == placed.end())
      placed[&s] = {lists.add(s.forbidden, s.n_forbidden), lists.add(s.repeated, s.n_repeated),
                    lists.add(s.bias_token, s.n_bias), lists.add(s.bias, s.n_bias)};
    if (score[first + i].allowed != nullptr) allowed[i] = lists.add(score[first + i].allowed, (vocab + 31) / 32);
  }
  const uint8_t* sent = lists.send(c);
  const auto at = [&]<class T>(size_t place, const T*) { return reinterpret_cast<const T*>(sent + place); };
  std::vector<cuda::ScoreTask> tasks;
  for (int i = 0; i < count; ++i) {
    const ScoreRow& row = score[first + i];
    const Sampling& s = *row.sampling;
    const Places& places = placed[&s];
    const bool alternatives = row.alternative_token != nullptr || row.alternative_probability != nullptr;
    tasks.push_back({s.temperature, s.top_p, s.guidance, s.repetition_penalty, s.top_k, s.scores_sampled,
                     alternatives ? s.alternatives : 0, s.n_forbidden, s.n_repeated, s.n_bias,
                     philox_uniform(s.seed, row.position, s.step), at(places.forbidden, s.forbidden),
                     at(places.repeated, s.repeated), at(places.bias_token, s.bias_token), at(places.bias, s.bias),
                     row.allowed == nullptr ? nullptr : at(allowed[i], row.allowed), s.guidance != 0 ? i + 1 : -1,
                     i > 0 && score[first + i - 1].sampling->guidance != 0});
  }
  return tasks;
}

// Calls use(first, count) for parts of the rows, whose logits are computed then.
template <class Use>
void for_logits(Context* c, const LinearInput& input, const Weight* head, const float* bias, const ScoreRow* score,
                int rows, Use use) {
  const Made made = produce(c, input, rows);
  const int vocab = head->matrix.n;
  for (int first = 0, count; first < rows; first += count) {
    count = std::min(c->layout.chunk, rows - first);
    if (score != nullptr && score[first + count - 1].sampling->guidance != 0) --count;  // its companion follows
    const cuda::Product product{head->matrix, made.x + first * made.stride, made.stride, bias, c->layout.logits, vocab,
                                false};
    cuda::multiply(c->stream, product, count, c->device->tensor_cores);
    use(first, count);
  }
}

int propose(Context* c, const LinearInput& input, const Weight* head, const float* bias, const ScoreRow* score,
            int rows) {
  int bad = -1;
  const int vocab = head->matrix.n;
  const Layout& at = c->layout;
  for_logits(c, input, head, bias, score, rows, [&](int first, int count) {
    for (int i = 0; i < count; ++i) {
      if (score[first + i].logits != nullptr)
        to_host(c, score[first + i].logits, at.logits + static_cast<size_t>(i) * vocab, vocab);
    }
    const auto tasks = tasks_of(c, score, first, count, vocab);
    to_device(c, at.tasks, tasks.data(), tasks.size());
    cuda::score(c->stream, at.logits, at.exponentials, vocab, vocab, at.tasks, count, at.results);
    std::vector<int32_t> token(count), wrong(count), other(static_cast<size_t>(count) * kMostTop);
    std::vector<float> probability(count), margin(count), entropy(count), others(other.size());
    to_host(c, token.data(), at.results.token, count);
    to_host(c, wrong.data(), at.results.bad, count);
    to_host(c, probability.data(), at.results.probability, count);
    to_host(c, margin.data(), at.results.margin, count);
    to_host(c, entropy.data(), at.results.entropy, count);
    to_host(c, other.data(), at.results.alternative_token, other.size());
    to_host(c, others.data(), at.results.alternative_probability, others.size());
    finish(c);
    for (int i = 0; i < count; ++i) {
      const ScoreRow& row = score[first + i];
      if (tasks[i].skip) continue;
      if (wrong[i]) {
        if (bad < 0) bad = first + i;
        continue;
      }
      if (row.token) *row.token = token[i];
      if (row.probability) *row.probability = probability[i];
      if (row.margin) *row.margin = margin[i];
      if (row.entropy) *row.entropy = entropy[i];
      const ptrdiff_t from = static_cast<ptrdiff_t>(i) * kMostTop;
      if (row.alternative_token) std::copy_n(&other[from], tasks[i].alternatives, row.alternative_token);
      if (row.alternative_probability) std::copy_n(&others[from], tasks[i].alternatives, row.alternative_probability);
    }
  });
  return bad;
}

int logits(Context* c, const LinearInput& input, int rows, const Weight* head, const float* bias, float* out) {
  const size_t vocab = head->matrix.n;
  for_logits(c, input, head, bias, nullptr, rows, [&](int first, int count) {
    to_host(c, out + first * vocab, c->layout.logits, count * vocab);
    finish(c);
  });
  for (int row = 0; row < rows; ++row) {
    const float* from = out + row * vocab;
    if (!std::all_of(from, from + vocab, [](float x) { return std::isfinite(x); })) return row;
  }
  return -1;
}

const Ops kOps = {"cuda",
                  Caught<open>::call,
                  Caught<close>::call,
                  Caught<isa>::call,
                  Caught<measure_peak>::call,
                  Caught<pack>::call,
                  Caught<release>::call,
                  Caught<weight_bytes>::call,
                  Caught<footprint>::call,
                  Caught<upload>::call,
                  Caught<release_vector>::call,
                  Caught<plan>::call,
                  Caught<create>::call,
                  Caught<destroy>::call,
                  Caught<buffer>::call,
                  Caught<threads>::call,
                  Caught<observe>::call,
                  Caught<embed>::call,
                  Caught<linear>::call,
                  Caught<apply>::call,
                  Caught<experts>::call,
                  Caught<store_kv>::call,
                  Caught<read_kv>::call,
                  Caught<write_kv>::call,
                  Caught<attention>::call,
                  Caught<propose>::call,
                  Caught<logits>::call};

}  // namespace
}  // namespace ld

extern "C" __attribute__((visibility("default"))) const ld::Plugin* localdiff_plugin() {
  static char reason[256];
  static ld::Plugin plugin{LD_VERSION, &ld::kOps, reason, ld::take_failure};
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    snprintf(reason, sizeof reason, "no NVIDIA GPU can be used: %s",
             status == cudaSuccess ? "none is present" : cudaGetErrorString(status));
    plugin.ops = nullptr;
  }
  return &plugin;
}
