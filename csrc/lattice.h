// The dynamic programme over a canvas whose text must match an automaton: which tokens are best together, and how sure.
//
// DINGO (arXiv:2505.23061): for every place and every state that the automaton can be in there, the best product of the
// model's probabilities from there on; a walk along it is the likeliest text that matches. With sums in place of maxima
// the same lattice gives what the probability of each class of tokens given a match is to be multiplied by, so that the
// scores of a row are those of its changed logits by the rules of sampling. At a temperature the walk is drawn from left
// to right from that distribution, sharpened. Any part of a walk can be written and the rest left open: the walk itself
// shows that a whole text remains possible. Sums are double, scaled to the best of a place. Not here: the rules of
// sampling (cpu/sampling.h), the automaton (automaton.h).
#pragma once

#include <vector>

#include "cpu/vector.h"
#include "localdiff.h"

namespace ld {

// Checks the fields of a canvas that concern its automaton. Throws Error(LD_INVALID).
void check_match(const ld_canvas& canvas, int index, int vocab);

// Fills the results of a canvas with an automaton, checked by check_scored and check_match. companion: of a guided one.
void propose_match(const VectorKernels& kernels, const ld_canvas& canvas, const ld_canvas* companion, int index);

}  // namespace ld
