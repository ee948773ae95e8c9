// Which layers a device holds where its memory is short: the last ones, with the head, so that a forward pass hands its
// rows over once. The layers before them, and looking tokens up, are the processor's. Sizes are the file's, since a
// device keeps weights as they lie in it. Not here: memory of sessions beyond the one that is reckoned with.
#pragma once

#include "model.h"

namespace ld {

constexpr int kHeadAlone = -1, kAsFit = 0;  // of ModelOptions::gpu_layers, else a number of layers
constexpr int kReckonedRows = 2048;         // positions of the one canvas that layers leave room for

// How many layers the device takes: as asked for, else as many as its free memory holds beside the head and a session
// for one canvas. A model whose rows are told what an earlier call expected stays whole, since its head and its table of
// tokens work on the same rows. Throws Error(LD_INVALID) for a number that is out of range, Error(LD_MEMORY) where not
// even the head fits. `model` has its configuration and nothing else yet.
int layers_on(const Part& device, const Gguf& file, const Model& model, int wanted);

}  // namespace ld
