// The rows of a step in device memory, at addresses that steps of equal size share, and steps as CUDA graphs: the first step
// of a kind is launched kernel by kernel, which also makes what is made once; the second is recorded and launched as a graph;
// from the third on only the rows are sent and the graph is launched. A graph is one unit: once launched it cannot be
// cancelled. Not here: the head (its host memory changes), steps that are asked for the drift of values (they wait for it).
#include <cstring>

#include "cuda/context.h"

namespace ld {
namespace {

constexpr size_t kMostRecordings = 16;

// Sends the rows; one copy.
void send(Context* c, const Rows& rows) {
  const size_t n = rows.count;
  c->staged.resize(n * kStepBytes);
  uint8_t* to = c->staged.data();
  const auto place = [&]<class T>(const T* values) {
    memcpy(to, values, n * sizeof(T));
    const size_t at = to - c->staged.data();
    to += n * sizeof(T);
    return reinterpret_cast<const T*>(c->layout.step + at);
  };
  const auto packed = [&](const RowInfo* info) {
    std::vector<cuda::Row> packed(n);
    for (size_t r = 0; r < n; ++r)
      packed[r] = {info[r].slot, info[r].place, info[r].lo, info[r].hi, info[r].position, info[r].hidden};
    return place(packed.data());
  };
  c->step = {rows, place(rows.tokens), place(rows.positions), place(rows.feedback), packed(rows.info),
             packed(rows.windowed)};
  to_device(c, c->layout.step, c->staged.data(), c->staged.size());
}

// What decides which kernels a step launches, and with which arguments.
std::vector<uint8_t> kind_of(const Rows& rows) {
  std::vector<uint8_t> kind(rows.count);
  for (int r = 0; r < rows.count; ++r) kind[r] = static_cast<uint8_t>(rows.canvas[r] | (rows.feedback[r] >= 0) << 1);
  return kind;
}

// The recording of a kind, the last used first.
Recording* find(Context* c, std::vector<uint8_t> kind) {
  for (auto each = c->recordings.begin(); each != c->recordings.end(); ++each) {
    if (each->kind != kind) continue;
    c->recordings.splice(c->recordings.begin(), c->recordings, each);
    return &c->recordings.front();
  }
  if (c->recordings.size() == kMostRecordings) {
    check(cudaStreamSynchronize(c->stream), "computing");  // the graph that goes may run
    c->recordings.pop_back();
  }
  c->recordings.emplace_front().kind = std::move(kind);
  return &c->recordings.front();
}

}  // namespace

bool begin_step(Context* c, const Rows& rows) {
  send(c, rows);
  const bool drifts = std::any_of(rows.info, rows.info + rows.count, [](const RowInfo& r) { return r.drift != nullptr; });
  c->launching = nullptr;
  if (!c->device->graphs || drifts) return false;
  Recording* recording = find(c, kind_of(rows));
  if (!recording->launched) c->launching = recording;
  if (!recording->launched || recording->failed) return false;
  if (recording->graph != nullptr) {
    check(cudaGraphLaunch(recording->graph, c->stream), "launching a step");
    return true;
  }
  if (cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
    c->recording = recording;
  } else {
    cudaGetLastError();
    recording->failed = true;
  }
  return false;
}

bool end_step(Context* c, bool whole) {
  Recording* recording = c->recording;
  if (c->launching != nullptr) c->launching->launched = whole;
  if (recording == nullptr) return true;
  c->recording = nullptr;
  cudaGraph_t graph = nullptr;
  bool good = cudaStreamEndCapture(c->stream, &graph) == cudaSuccess && whole;
  good = good && cudaGraphInstantiate(&recording->graph, graph, 0) == cudaSuccess;
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (!good) cudaGetLastError();
  if (!whole) return true;
  if (!good) {
    recording->graph = nullptr;
    recording->failed = true;
    return false;
  }
  check(cudaGraphLaunch(recording->graph, c->stream), "launching a step");
  return true;
}

const int32_t* ids_of(Context* c, const int32_t* ids, int count) {
  const Step& step = c->step;
  if (ids == step.rows.tokens) return step.tokens;
  if (ids == step.rows.positions) return step.positions;
  if (ids >= step.rows.feedback && ids < step.rows.feedback + step.rows.count)
    return step.feedback + (ids - step.rows.feedback);
  to_device(c, c->layout.picks, ids, count);
  return c->layout.picks;
}

const cuda::Row* rows_of(const Context* c, const RowInfo* rows) {
  if (rows != c->step.rows.info && rows != c->step.rows.windowed) refuse(LD_INTERNAL, "rows are not those of the step");
  return rows == c->step.rows.info ? c->step.info : c->step.windowed;
}

}  // namespace ld
