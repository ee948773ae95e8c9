// The part of CUDA's run-time library that the plug-in's host code uses: streams that may be captured, graphs, and memory
// with fences. Not here: what runs kernels (emulator.cpp).
#include <mutex>
#include <unordered_map>

#include "emulator.h"
#include "sanitizers.h"

// ---- streams and graphs ----

namespace {

EmulatedStream* captured;  // that of the one thread
int graphs_made, graphs_launched;

// What may not be done while a stream is captured.
cudaError_t forbidden() {
  captured->broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace

// How many graphs were instantiated and launched so far, for the tests.
extern "C" __attribute__((visibility("default"))) void ld_emulated_graphs(int* made, int* launched) {
  *made = graphs_made;
  *launched = graphs_launched;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new EmulatedStream, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream != nullptr && stream->captured ? forbidden() : cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (captured != nullptr) return forbidden();
  captured = stream;
  stream->captured = true;
  return cudaSuccess;
}
// $LD_EMULATED_CAPTURE=fails: what was captured is lost.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream->captured) return cudaErrorStreamCaptureInvalidated;
  const char* wanted = getenv("LD_EMULATED_CAPTURE");
  const bool broken = stream->broken || (wanted != nullptr && strcmp(wanted, "fails") == 0);
  if (!broken) *graph = new EmulatedGraph(std::move(stream->graph));
  *stream = {};
  captured = nullptr;
  return broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  ++graphs_made;
  return *out = new EmulatedGraph(*graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (stream->captured) return forbidden();
  ++graphs_launched;
  for (const auto& work : graph->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }

// ---- memory ----

namespace {

constexpr size_t kFence = 256;  // bytes that follow an allocation and are nobody's
constexpr unsigned char kFenced = 0xa5;

std::mutex allocations_lock;  // weights arrive from other threads
std::unordered_map<void*, size_t>& allocations() {
  static auto* value = new std::unordered_map<void*, size_t>;  // what is freed last is freed after statics
  return *value;
}

size_t fenced_bytes(size_t bytes) { return (bytes + 255) / 256 * 256 + kFence; }

}  // namespace

// Memory that a kernel reads before it was written is not zero by chance.
cudaError_t cudaMalloc(void** out, size_t bytes) {
  if (captured != nullptr) return forbidden();
  char* memory = static_cast<char*>(aligned_alloc(256, fenced_bytes(bytes)));
  *out = memory;
  if (memory == nullptr) return 2;
  const int byte = ld::cuda::fill_byte();
  memset(memory, byte < 0 ? 0xff : byte, bytes);
  memset(memory + bytes, kFenced, fenced_bytes(bytes) - bytes);
  ld::cuda::forbid(memory + bytes, fenced_bytes(bytes) - bytes);
  const std::lock_guard<std::mutex> lock(allocations_lock);
  allocations()[memory] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  if (captured != nullptr) return forbidden();
  if (at == nullptr) return cudaSuccess;
  size_t bytes;
  {
    const std::lock_guard<std::mutex> lock(allocations_lock);
    const auto found = allocations().find(at);
    if (found == allocations().end()) ld::cuda::report("memory is freed that was not allocated");
    bytes = found->second;
    allocations().erase(found);
  }
  char* memory = static_cast<char*>(at);
  ld::cuda::allow(memory, fenced_bytes(bytes));
  const auto whole = [](char c) { return static_cast<unsigned char>(c) == kFenced; };
  if (!std::all_of(memory + bytes, memory + fenced_bytes(bytes), whole))
    ld::cuda::report("memory was written past the end of an allocation");
  return free(at), cudaSuccess;
}
cudaError_t cudaMallocHost(void** out, size_t bytes) { return cudaMalloc(out, bytes); }
cudaError_t cudaFreeHost(void* at) { return cudaFree(at); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;  // of no addresses, which memcpy does not take
  return ld::cuda::run(stream, [=] { memcpy(to, from, bytes); }), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  return ld::cuda::run(stream, [=] { ld::cuda::fill(at, value, bytes); }), cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int) {
  *out = {"emulated", 9, 0, 4, size_t{4} << 30};
  return cudaSuccess;
}
// $LD_EMULATED_MEMORY bytes are free.
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const char* bytes = getenv("LD_EMULATED_MEMORY");
  *total = size_t{4} << 30;
  *free = bytes ? strtoull(bytes, nullptr, 10) : *total;
  return cudaSuccess;
}
