// What the plug-in's operations share: its failures, device memory, weights, and a session's memory, which is one
// allocation for activations, keys and values and scratch. Private to cuda/.
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/arena.h"
#include "cuda/blas.h"
#include "cuda/decode.h"
#include "cuda/forms.h"
#include "cuda/kernels.h"
#include "error.h"

namespace ld {

// Thrown and caught within this library.
struct Failure {
  ld_status status;
  std::string message;
};

[[noreturn]] inline void refuse(ld_status status, const std::string& message) { throw Failure{status, message}; }

inline void check(cudaError_t status, const char* what) {
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

// How quantised weights are multiplied; where it is float32, all weights are, and where it is bfloat16, those in it too.
enum class Cores { float32, bfloat16, int8 };

struct Device {
  int index = 0;
  Cores cores = Cores::int8;
  bool bfloat16 = true;              // tensor cores have it
  std::unique_ptr<cuda::Blas> blas;  // that multiplies in bfloat16; null where the own kernel does
  bool library_only = false;         // what it does not take is an error; experts are the own kernel's anyway
  bool exact_attention = false;      // without tensor cores
  bool graphs = true;
  bool plan = false;
  std::string isa;
  // Tables by the file's bytes, which outlive them: a head that is tied to one is there once.
  std::map<const uint8_t*, std::weak_ptr<Memory>> tables;
  Footprint footprint{};  // of the weights as they lie in the file
  Copies copies;
};

struct Weight {
  Device* device;
  cuda::Matrix matrix;
  std::shared_ptr<Memory> memory;
  size_t bytes;
};

// The rows of the step and where they lie in device memory.
struct Step {
  Rows rows{};
  const int32_t *tokens = nullptr, *positions = nullptr, *feedback = nullptr;
  const cuda::Row *info = nullptr, *windowed = nullptr;
};
constexpr size_t kStepBytes = 3 * sizeof(int32_t) + 2 * sizeof(cuda::Row);  // of one row

// Everything of a context that lies in its memory.
struct Layout {
  Layout(Arena arena, const ContextShape& s, std::optional<TensorType> form_type, bool library) {
    if (library) workspace = arena.take<uint8_t>(cuda::Blas::kWorkspace);  // first: as aligned as the allocation
    const size_t pairs = static_cast<size_t>(s.rows) * s.experts_used;
    const size_t inputs = std::max<size_t>({static_cast<size_t>(s.rows), static_cast<size_t>(s.score_rows), pairs});
    for (int i = 0; i < static_cast<int>(Buffer::count); ++i) {
      const Buffer which = static_cast<Buffer>(i);
      buffers[i] = arena.take<float>(s.rows_of(which), s.width_of(which));
    }
    made = arena.take<float>(inputs, s.max_k);
    quantised.size = s.math == Math::fast ? cuda::kGroup : 32;
    const size_t blocks = quantised.blocks(s.max_k);
    quantised.q = arena.take<int8_t>(inputs, (s.max_k + 31) / 32 * 32);
    quantised.scale = arena.take<float>(inputs, blocks);
    quantised.sums = arena.take<uint32_t>(inputs, blocks);
    const int most_n =
        std::max({s.vocab, s.expert_dim, s.max_k, *std::max_element(std::begin(s.width), std::end(s.width))});
    form_bytes = form_scratch(form_type, most_n, s.max_k);
    form = arena.take<uint8_t>(form_bytes);
    for (const KvShape* layer = s.kv; layer < s.kv + s.layers; ++layer) {
      float* keys = arena.take<float>(s.slots, s.slot_length, layer->kv_heads, layer->head_dim);
      float* values = arena.take<float>(s.slots, s.slot_length, layer->kv_heads, layer->head_dim);
      states.push_back({keys, values, s.slot_length, layer->kv_heads, layer->head_dim});
    }
    angles = arena.take<float>(s.rows, s.max_head_dim());
    drift = arena.take<float>(s.rows);
    step = arena.take<uint8_t>(s.rows, kStepBytes);
    picks = arena.take<int32_t>(s.score_rows);
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
    // Rows are split for a product only, exponentials made when the products are done: they share memory.
    const size_t split_blocks = cuda::split_blocks(s.max_k), logit_values = static_cast<size_t>(chunk) * s.vocab;
    const size_t split_values = inputs * split_blocks * cuda::kMostParts * (cuda::kSplitBlock / 2);
    exponentials = arena.take<float>(std::max(logit_values, split_values));
    split = {reinterpret_cast<uint32_t*>(exponentials), arena.take<float>(inputs, split_blocks)};
    tasks = arena.take<cuda::ScoreTask>(chunk);
    if (s.width_of(Buffer::feedback) > 0) {
      expectation.factor = arena.take<float>(chunk);
      expectation.row = arena.take<int32_t>(chunk);
    }
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
  float *made, *angles, *drift;
  cuda::Quantised quantised;
  uint8_t* workspace = nullptr;  // of the library for products in bfloat16
  cuda::Split split;
  uint8_t* form;  // parts of weights in the session's form (forms.h)
  size_t form_bytes;
  std::vector<cuda::State> states;  // by layer
  uint8_t* step;                    // what a step reads of its rows
  int32_t* picks;                   // which rows the head reads
  float *router = nullptr, *hidden = nullptr, *expert_out = nullptr;
  cuda::Routing routing{};
  int chunk;
  float *logits, *exponentials;
  cuda::ScoreTask* tasks;
  cuda::Expectation expectation{};
  cuda::ScoreResults results;
  size_t bytes;
};

// The launches of a step as a graph. Their arguments are the session's addresses and what follows from the kind of the step;
// all that changes between steps of a kind lies in device memory.
struct Recording {
  std::vector<uint8_t> kind;
  bool launched = false;            // one by one, all of them, which has made what is made once
  cudaGraphExec_t graph = nullptr;  // null until the kind is met again
  bool failed = false;              // steps of the kind are launched one by one
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
};

struct Context {
  Context(Device* device_, const ContextShape& shape_)
      : device(device_),
        shape(shape_),
        form(session_form(*device_, shape_.math)),
        memory(Layout(Arena(nullptr), shape_, form, device_->blas != nullptr).bytes),
        layout(Arena(memory.data()), shape_, form, device_->blas != nullptr) {
    // Beside the stream that all threads share: weights of another model may arrive while a step is recorded.
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
    check(cudaMemsetAsync(memory.data(), 0, memory.bytes(), stream), "clearing a session");
  }
  ~Context() {
    cudaStreamSynchronize(stream);
    recordings.clear();
    cudaStreamDestroy(stream);
  }

  Device* device;
  ContextShape shape;
  std::optional<TensorType> form;
  Memory memory;
  Layout layout;
  cudaStream_t stream{};
  Step step;
  std::vector<uint8_t> staged;  // what goes to Layout::step
  std::list<Recording> recordings;
  Recording* recording = nullptr;                                         // that the operations go to
  Recording* launching = nullptr;                                         // of the kind that is launched one by one
  std::map<const Weight* const*, std::unique_ptr<Memory>> expert_tables;  // device pointers to the experts' weights
  std::map<const Weight*, std::shared_ptr<Memory>> copies;                // null: made for every product (forms.h)
  std::unique_ptr<Memory> lists;                                          // token lists of a propose call
};

template <class T>
void to_device(Context* c, T* to, const T* from, size_t count) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, c->stream), "copying to it");
}

template <class T>
void to_host(Context* c, T* to, const T* from, size_t count) {
  check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, c->stream), "copying from it");
}

inline void finish(Context* c) {
  check(cudaStreamSynchronize(c->stream), "computing");
  check(cudaGetLastError(), "computing");
}

// What products read: x itself where nothing is done to it, and the forms of it that they were found to read.
struct Made {
  const float* x;
  ptrdiff_t stride;
  int width, rows;
  bool quantised = false;
  cuda::Form split = cuda::Form::float32;  // none
};
Made produce(Context* c, const LinearInput& given, int rows);

// y[r * stride + i] = or += as Product has it; made is given the form that is read, for the next ones.
cuda::Product product_of(Context* c, Made& made, const Weight* weight, const float* bias, float* y, ptrdiff_t stride,
                         bool add = false);
void multiply(Context* c, Made& made, const Weight* weight, const float* bias, float* y, ptrdiff_t stride,
              bool add = false);

// steps.cu
bool begin_step(Context* c, const Rows& rows);
bool end_step(Context* c, bool whole);
// Token ids, positions or picked rows in device memory: those of the step are there already.
const int32_t* ids_of(Context* c, const int32_t* ids, int count);
const cuda::Row* rows_of(const Context* c, const RowInfo* rows);

// peak.cu
Peak measure_peak(Device* device, double seconds);

// score_ops.cu
int propose(Context* c, const LinearInput& input, const OutputLayer& head, const ScoreRow* score, int rows);
int logits(Context* c, const LinearInput& input, int rows, const OutputLayer& head, float* out);

}  // namespace ld
