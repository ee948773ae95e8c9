// What a canvas asks of its scored rows - sampling, changed logits, places of results - checked and laid out; and the same
// results for logits that come from elsewhere than a forward pass. Sessions and ld_logits_propose share it, so that there is
// one set of rules. Not here: the rules of sampling (cpu/sampling.h), rows to compute (session.h).
#pragma once

#include <vector>

#include "localdiff.h"
#include "ops.h"

namespace ld {

inline int token_words(int vocab) { return (vocab + 31) / 32; }

// Ascending values in [0, limit), or Error(LD_INVALID) that names the canvas.
void check_ascending(const char* name, const char* kind, int index, const int32_t* values, int count, int limit);

// Everything of a canvas that concerns its scored rows. Throws Error(LD_INVALID).
// possible: [token_words(vocab)] scratch
void check_scored(const ld_canvas& canvas, int index, int vocab, std::vector<uint32_t>* possible);

// The next canvas of a call, null where there is none, as the companion of a guided one.
void check_companion(const ld_canvas& canvas, const ld_canvas* companion, int index);

Sampling sampling_of(const ld_canvas& canvas);

// Row i of the scored ones, with the position it stands for.
ScoreRow scored_row(const ld_canvas& canvas, int i, int vocab, int32_t position, const Sampling* sampling);

[[noreturn]] void refuse_non_finite(const ScoreRow& row);

// Fills the results of canvases from their `logits`, [n_score][vocab], which are read and left alone.
void propose_logits(int vocab, const ld_canvas* canvases, int n_canvases);

}  // namespace ld
