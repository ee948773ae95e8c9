// A session: the state of some canvases (slots) and the memory of a forward pass, all taken at creation. It turns
// canvases into rows and intervals, refuses what would read state that was never computed, and runs the forward pass
// and the head. One caller at a time; cancel() may be called beside it. Policy (what to commit, when to stop) is not
// here.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "localdiff.h"
#include "transformer.h"

namespace ld {

struct SessionOptions {
  int slots, slot_length, rows, threads;
  Math math;
};

class Session {
 public:
  // Fills defaults and checks ranges. Throws Error(LD_INVALID).
  static SessionOptions resolve(const Model& model, const ld_session_options& options);
  // Bytes that a session with these options takes, of memory and of the plug-in's device.
  static uint64_t plan(const Model& model, const SessionOptions& options);
  static uint64_t plan_device(const Model& model, const SessionOptions& options);

  Session(const Model& model, const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // One forward pass over the canvases, then the head on their scored rows. Throw Error.
  void propose(const ld_canvas* canvases, int n_canvases);
  void logits(const ld_canvas* canvases, int n_canvases, float* out);
  // See ld_session_lengths.
  void lengths(int slot, const int32_t* tokens, int length, float* out);
  void cancel() { cancel_.store(true, std::memory_order_relaxed); }
  const Timings& timings() const { return timings_; }

  // See ld_session_save and ld_session_load.
  uint64_t state_bytes(int length) const;
  void save(int slot, int length, void* out, uint64_t bytes);
  int load(int slot, const void* data, uint64_t bytes);

  // See ld_session_observe. One observation for each of the model's multiplied tensors.
  struct Observation {
    std::vector<double> squares;  // [matrices, k]
    std::vector<uint64_t> rows;   // [matrices]
  };
  void observe(bool on);
  const std::vector<Observation>& observations() const { return observations_; }
  const Multiplied& observed_tensor(size_t index) const { return model_.multiplied()[index]; }
  int threads() const { return model_.parts()[0].ops->threads(contexts_[0]); }

 private:
  // propose: the scored rows of a guided canvas alternate with those of its companion and may leave feedback, else
  // canvases follow each other.
  void gather(const ld_canvas* canvases, int n_canvases, bool propose);
  // Scored rows are written to places from `first` on, `step` apart.
  void gather_canvas(const ld_canvas& canvas, int index, size_t first, size_t step);
  void take_feedback(const ld_canvas& canvas, int index);
  void check(const ld_canvas& canvas, int index);
  void run_forward();
  Rows rows() const;
  LinearInput scored_input();
  Context* head_context() const { return contexts_.back(); }
  void destroy();
  struct LayerState {
    const Ops* ops;
    Context* context;
    int index;
  };
  LayerState layer_at(int layer) const;

  const Model& model_;
  const SessionOptions options_;
  std::vector<Context*> contexts_;  // one for each part of the model
  std::atomic<bool> cancel_{false};
  Timings timings_;
  std::vector<Observation> observations_;  // empty while nothing is observed
  Observed observed_;

  // One forward pass; capacity reserved at creation, so that a step allocates nothing.
  std::vector<int32_t> tokens_, positions_, pick_;  // [rows], [rows], [score rows]
  std::vector<RowInfo> info_, windowed_;            // [rows]; windowed: as layers with a window see them
  std::vector<uint8_t> canvas_row_;                 // [rows] 1 = of a canvas, 0 = of a prompt
  std::vector<int32_t> feedback_;                   // [rows] what is fed back, see Rows
  std::vector<ScoreRow> score_;                     // [score rows]
  std::vector<Sampling> sampling_;                  // [canvases]
  std::vector<int32_t> row_of_;                     // [slot_length] row of a position in this call, -1
  std::vector<int32_t> known_before_;               // [slot_length + 1] positions below p with state
  std::vector<uint8_t> slot_used_;                  // [slots]
  std::vector<uint8_t> known_;                      // [slots * slot_length] state was computed
  std::vector<uint8_t> expected_;                   // [slots * slot_length] an expected embedding was left
  std::vector<uint32_t> possible_;                  // [bits of the vocabulary] tokens that are not forbidden
};

}  // namespace ld
