// The GPU's row of Ops: weights in device memory as they lie in the file, one allocation per session for activations,
// keys and values and scratch, and every operation as launches on the session's stream. Nothing waits for the device but
// what brings results back (propose, logits, the drift of values).
#include <cstdio>
#include <cstring>
#include <new>
#include <type_traits>

#include "cuda/context.h"
#include "plugin.h"

namespace ld {
namespace {

thread_local Failure last_failure{LD_OK, ""};

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

// Which of the words an environment variable says, the first where it says nothing: other ways than the usual one, for
// comparisons.
size_t choice(const char* name, const std::vector<const char*>& words) {
  const char* wanted = getenv(name);
  std::string expected;
  for (size_t i = 0; i < words.size(); ++i) {
    if (wanted == nullptr || strcmp(wanted, words[i]) == 0) return i;
    expected += text("%s%s", i == 0 ? "" : i + 1 < words.size() ? ", " : " or ", words[i]);
  }
  refuse(LD_INVALID, text("%s is '%.32s', expected %s", name, wanted, expected.c_str()));
}

// Of what multiplies in bfloat16: own kernels alone, or a library or nothing.
constexpr const char *kOwnBfloat16 = "bfloat16-own", *kLibraryBfloat16 = "bfloat16-cublaslt";

Cores chosen_cores(bool bfloat16) {
  std::vector<const char*> words = {"int8", "float32"};
  if (bfloat16) words.insert(words.end(), {"bfloat16", kOwnBfloat16, kLibraryBfloat16});
  constexpr Cores kCores[] = {Cores::int8, Cores::float32, Cores::bfloat16};
  return kCores[std::min(choice("LOCALDIFF_CUDA_PRODUCTS", words), size_t{2})];
}

// Looks for the library that multiplies in bfloat16, and says what does.
void find_library(Device* device) {
  const char* wanted = getenv("LOCALDIFF_CUDA_PRODUCTS");
  std::string reason = "as asked for";
  if (strcmp(wanted, kOwnBfloat16) != 0) device->blas = cuda::Blas::open(getenv("LOCALDIFF_CUBLASLT"), &reason);
  device->library_only = strcmp(wanted, kLibraryBfloat16) == 0;
  if (device->library_only && device->blas == nullptr)
    refuse(LD_INVALID, text("LOCALDIFF_CUDA_PRODUCTS is %s, but %s", wanted, reason.c_str()));
  device->isa += ", bfloat16 by " + (device->blas ? device->blas->name() : text("own kernels (%s)", reason.c_str()));
}

Device* open(const DeviceOptions& options) {
  auto device = std::make_unique<Device>();
  cudaDeviceProp properties;
  check(cudaSetDevice(device->index), "being chosen");
  check(cudaGetDeviceProperties(&properties, device->index), "being asked for its properties");
  device->bfloat16 = properties.major >= 8;
  device->cores = chosen_cores(device->bfloat16);
  device->exact_attention = choice("LOCALDIFF_CUDA_ATTENTION", {"tensor", "float32"}) == 1;
  device->graphs = choice("LOCALDIFF_CUDA_GRAPHS", {"on", "off"}) == 0;
  device->plan = options.plan;
  device->isa = text("sm_%d%d", properties.major, properties.minor);
  if (options.isa != nullptr)
    refuse(LD_INVALID, text("isa '%.64s' is a row of CPU kernels, and this is a GPU; leave it out", options.isa));
  if (device->cores == Cores::bfloat16) find_library(device.get());
  return device.release();
}

void close(Device* device) { delete device; }
const char* isa(const Device* device) { return device->isa.c_str(); }

void memory(const Device*, size_t* free, size_t* total) {
  check(cudaMemGetInfo(free, total), "being asked for its memory");
}

Weight* pack(Device* device, const Tensor& tensor, Use use) {
  if (!cuda::has_format(tensor.type->type))
    refuse(LD_FILE, text("%.*s: type %s is not supported on the GPU", static_cast<int>(tensor.name.size()),
                         tensor.name.data(), tensor.type->name));
  if (use == Use::multiply && !tensor.type->finite(tensor.data.data(), tensor.columns() * tensor.rows()))
    refuse(LD_FILE, text("%.*s: a scale is not finite; the file is damaged", static_cast<int>(tensor.name.size()),
                         tensor.name.data()));
  auto weight = std::make_unique<Weight>();
  weight->device = device;
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

void release(Weight* weight) {
  weight->device->copies.forget(weight);
  delete weight;
}
size_t weight_bytes(const Weight* weight) { return weight->bytes; }

Footprint footprint(const Device* device) {
  Footprint all = device->footprint;
  all.weights += device->copies.bytes();
  return all;
}


float* upload(Device*, const float* values, size_t count) {
  void* vector = nullptr;
  if (cudaMalloc(&vector, count * sizeof(float)) != cudaSuccess)
    refuse(LD_MEMORY, text("%zu bytes of GPU memory could not be had", count * sizeof(float)));
  check(cudaMemcpyAsync(vector, values, count * sizeof(float), cudaMemcpyHostToDevice, nullptr), "receiving a vector");
  check(cudaStreamSynchronize(nullptr), "receiving a vector");
  return static_cast<float*>(vector);
}

void release_vector(float* vector) { cudaFree(vector); }

size_t plan(const Device* device, const ContextShape& shape) {
  return Layout(Arena(nullptr), shape, session_form(*device, shape.math), device->blas != nullptr).bytes;
}

Context* create(Device* device, const ContextShape& shape) {
  if (device->plan) refuse(LD_INVALID, "the model was opened to plan its memory; open it without that to compute");
  if (shape.math == Math::fast && device->cores != Cores::int8)
    refuse(LD_INVALID, "math is fast, which has int8 products, and LOCALDIFF_CUDA_PRODUCTS asks for others; leave one out");
  device->copies.make_room(plan(device, shape));
  return new Context(device, shape);
}

void destroy(Context* context) { delete context; }
float* buffer(Context* context, Buffer which) { return context->layout.buffers[static_cast<int>(which)]; }
void receive(Context* c, const float* from, size_t count, float* to) { to_device(c, to, from, count); }
int threads(const Context*) { return 1; }

void observe(Context*, const Observed* sums) {
  if (sums != nullptr) refuse(LD_INVALID, "importance matrices are gathered on the processor; use the device cpu");
}

void embed(Context* c, const Weight* table, const int32_t* ids, int rows, bool add, float scale, float* out) {
  cuda::embed(c->stream, table->matrix, ids == nullptr ? nullptr : ids_of(c, ids, rows), rows, add, scale, out);
}

// The input with its picked rows in device memory.
LinearInput on_device(Context* c, LinearInput input, int rows) {
  if (input.pick != nullptr) input.pick = ids_of(c, input.pick, rows);
  return input;
}

}  // namespace

Made produce(Context* c, const LinearInput& given, int rows) {
  const bool plain = given.pick == nullptr && given.norm.kind == NormKind::none &&
                     given.activation == Activation::none && given.up == nullptr;
  if (plain) return {given.x, given.stride, given.width, rows};
  cuda::produce(c->stream, on_device(c, given, rows), rows, c->layout.made);
  return {c->layout.made, given.width, given.width, rows};
}

namespace {

// What products with weights of a type read.
cuda::Form form_of(const Device& device, TensorType type) {
  using cuda::Form;
  if (device.cores == Cores::float32 || type == TensorType::f32) return Form::float32;
  if (type == TensorType::f16) return Form::halves;
  if (device.cores == Cores::bfloat16) return Form::bfloat16;
  if (type == TensorType::bf16) return device.bfloat16 ? Form::bfloats : Form::float32;
  return Form::int8;
}

}  // namespace

cuda::Product product_of(Context* c, Made& made, const Weight* weight, const float* bias, float* y, ptrdiff_t stride,
                         bool add) {
  const Layout& at = c->layout;
  const cuda::Form form = form_of(*c->device, weight->matrix.type);
  if (form == cuda::Form::int8 && !made.quantised) {
    cuda::quantise(c->stream, made.x, made.stride, made.width, made.rows, at.quantised);
    made.quantised = true;
  } else if (form != cuda::Form::int8 && form != cuda::Form::float32 && form != made.split) {
    cuda::split(c->stream, form, made.x, made.stride, made.width, made.rows, at.split);
    made.split = form;
  }
  return {weight->matrix, made.x, made.stride, at.quantised, bias, y, stride, add, form, at.split};
}

void multiply(Context* c, Made& made, const Weight* weight, const float* bias, float* y, ptrdiff_t stride, bool add) {
  multiply(c, weight, product_of(c, made, weight, bias, y, stride, add), made.rows);
}

namespace {

void linear(Context* c, const LinearInput& input, int rows, const LinearOutput* outputs, int n_outputs) {
  Made made = produce(c, input, rows);
  for (const LinearOutput* o = outputs; o < outputs + n_outputs; ++o)
    multiply(c, made, o->weight, o->bias, o->y, o->stride, o->add);
}

void apply(Context* c, const LinearInput& input, int rows, bool add, float* y) {
  cuda::apply(c->stream, on_device(c, input, rows), rows, add, y);
}

void mean(Context* c, const float* x, int width, int rows, float* y) { cuda::mean(c->stream, x, width, rows, y); }
void scale(Context* c, float* x, int rows, int width, float factor) {
  cuda::scale(c->stream, x, static_cast<size_t>(rows) * width, factor);
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
  const bool own = e.router_norm.kind != NormKind::none;  // the router has another input
  LinearInput routed = input;
  if (own) routed.norm = e.router_norm;
  Made made = produce(c, routed, rows);
  multiply(c, made, e.router, nullptr, at.router, e.count);
  cuda::route(c->stream, e.rule, e.count, at.router, e.bias, e.gain, rows, at.routing);
  if (own) made = produce(c, input, rows);
  const auto product = [&](const Weight* const* weights, Made& from, const int32_t* pick, float* to, ptrdiff_t stride) {
    const cuda::Product common = product_of(c, from, weights[0], nullptr, to, stride);
    multiply_experts(c, weights, {common, expert_table(c, weights, e.count), 0, at.routing.begin, pick, e.count}, rows);
  };
  product(e.gate, made, at.routing.row_of, at.hidden, 2 * hidden);
  product(e.up, made, at.routing.row_of, at.hidden + hidden, 2 * hidden);
  Made gated = produce(c, {at.hidden, 2 * hidden, hidden, nullptr, Norm{}, e.activation, at.hidden + hidden}, pairs);
  product(e.down, gated, nullptr, at.expert_out, width);
  cuda::gather_experts(c->stream, at.routing, used, at.expert_out, width, rows, input.width, y);
}

void store_kv(Context* c, const AttentionLayer& layer, float* qkv, int stride, const RowInfo* rows, int n_rows) {
  const bool drifts = std::any_of(rows, rows + n_rows, [](const RowInfo& row) { return row.drift != nullptr; });
  cuda::store(c->stream, layer, c->layout.states[layer.index], c->shape.heads, qkv, stride, rows_of(c, rows),
              n_rows, c->layout.angles, drifts ? c->layout.drift : nullptr);
  if (!drifts) return;
  std::vector<float> drift(n_rows);
  to_host(c, drift.data(), c->layout.drift, n_rows);
  finish(c);
  for (int r = 0; r < n_rows; ++r)
    if (rows[r].drift != nullptr) *rows[r].drift += drift[r];
}

// Of places [0, length) keys lie side by side, and so do values.
struct Places {
  size_t first, count;
};

Places places(const cuda::State& state, int slot, int length) {
  const size_t width = static_cast<size_t>(state.kv_heads) * state.head_dim;
  return {slot * width * state.slot_length, length * width};
}

void read_kv(Context* c, int layer, int slot, int length, float* k, float* v) {
  const cuda::State& state = c->layout.states[layer];
  const auto [first, count] = places(state, slot, length);
  to_host(c, k, state.keys + first, count);
  to_host(c, v, state.values + first, count);
  finish(c);
}

void write_kv(Context* c, int layer, int slot, int length, const float* k, const float* v) {
  const cuda::State& state = c->layout.states[layer];
  const auto [first, count] = places(state, slot, length);
  to_device(c, state.keys + first, k, count);
  to_device(c, state.values + first, v, count);
  finish(c);
}

void attention(Context* c, const AttentionLayer& layer, const float* qkv, int stride, const RowInfo* rows, int n_rows,
               float* out) {
  cuda::attend(c->stream,
               {layer.scale, c->layout.states[layer.index], c->shape.heads, qkv, stride, rows_of(c, rows),
                n_rows, out},
               c->device->exact_attention);
}

const Ops kOps = {"cuda",
                  Caught<open>::call,
                  Caught<close>::call,
                  Caught<isa>::call,
                  Caught<measure_peak>::call,
                  Caught<memory>::call,
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
                  Caught<receive>::call,
                  Caught<threads>::call,
                  Caught<observe>::call,
                  Caught<begin_step>::call,
                  Caught<end_step>::call,
                  Caught<embed>::call,
                  Caught<linear>::call,
                  Caught<apply>::call,
                  Caught<mean>::call,
                  Caught<scale>::call,
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
  static ld::Plugin plugin{LD_VERSION, sizeof(ld::Ops), &ld::kOps, reason, ld::take_failure};
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    snprintf(reason, sizeof reason, "no NVIDIA GPU can be used: %s",
             status == cudaSuccess ? "none is present" : cudaGetErrorString(status));
    plugin.ops = nullptr;
  }
  return &plugin;
}
