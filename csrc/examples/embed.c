/* localdiff inside another program: token ids in, token ids out, with a callback for each step and a way to stop.
 *
 *   cc -std=c11 embed.c $(localdiff doctor --cflags --libs) -o embed
 *   ./embed model.gguf MASK SHIFT STEPS COUNT ID ID ...      prompt ids, then COUNT masked positions
 *
 * The simplest good decoder: each step asks for every masked position and commits the one the model is surest of. Ctrl-C
 * cancels, and so does the callback after STEPS steps (0 = never): the draft as far as it got is printed, exit status 3.
 * Not here: text (a tokenizer turns it into ids), sampling, several canvases.
 */
#include <localdiff.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct text {
  int32_t *tokens, length, mask, shift, left; /* left: positions that are still masked */
} text;
typedef void (*step_callback)(const text* text, int32_t step, void* user);

static ld_session* session; /* for the signal handler: ld_session_cancel may be called from anywhere */

static void on_interrupt(int signal) {
  (void)signal;
  ld_session_cancel(session);
}

static void on_step(const text* text, int32_t step, void* user) {
  fprintf(stderr, "step %d: %d of %d positions are open\n", step, text->left, text->length);
  if (step == *(const int32_t*)user) ld_session_cancel(session);
}

static ld_status denoise(text* text, step_callback callback, void* user) {
  const size_t n = (size_t)text->length;
  int32_t *masked = malloc(n * sizeof *masked), *token = malloc(n * sizeof *token);
  float* probability = malloc(n * sizeof *probability);
  ld_status status = masked && token && probability ? LD_OK : LD_MEMORY;
  for (int32_t i = text->length - text->left, k = 0; status == LD_OK && i < text->length; i++) masked[k++] = i;
  for (int32_t step = 1; status == LD_OK && text->left > 0; step++) {
    ld_canvas canvas = {.struct_size = sizeof canvas,
                        .tokens = text->tokens,
                        .length = text->length,
                        .score = masked,
                        .n_score = text->left,
                        .logit_shift = text->shift,
                        .forbidden = &text->mask,
                        .n_forbidden = 1,
                        .token = token,
                        .probability = probability};
    status = ld_session_propose(session, &canvas, 1);
    if (status != LD_OK) break;
    int32_t best = 0;
    for (int32_t i = 1; i < text->left; i++)
      if (probability[i] > probability[best]) best = i;
    text->tokens[masked[best]] = token[best];
    text->left--;
    for (int32_t i = best; i < text->left; i++) masked[i] = masked[i + 1];
    callback(text, step, user);
  }
  free(masked);
  free(token);
  free(probability);
  return status;
}

int main(int argc, char** argv) {
  if (argc < 7) return fprintf(stderr, "usage: embed MODEL.gguf MASK SHIFT STEPS COUNT ID...\n"), 2;
  int32_t steps = atoi(argv[4]), prompt = argc - 6, count = atoi(argv[5]) < 0 ? 0 : atoi(argv[5]);
  text text = {.length = prompt + count, .mask = atoi(argv[2]), .shift = atoi(argv[3]), .left = count};
  ld_session_options options = {.struct_size = sizeof options, .slot_length = text.length};
  ld_gguf* file = NULL;
  ld_model* model = NULL;
  text.tokens = malloc(sizeof *text.tokens * (size_t)text.length);
  for (int32_t i = 0; text.tokens && i < text.length; i++) text.tokens[i] = i < prompt ? atoi(argv[6 + i]) : text.mask;

  ld_status status = text.tokens ? ld_gguf_open(argv[1], LD_ACCESS_MAP, &file) : LD_MEMORY;
  if (status == LD_OK) status = ld_model_open(file, NULL, &model);
  if (status == LD_OK) status = ld_session_create(model, &options, &session);
  if (status == LD_OK) {
    signal(SIGINT, on_interrupt);
    status = denoise(&text, on_step, &steps);
    signal(SIGINT, SIG_DFL);
  }
  if (status == LD_OK || status == LD_CANCELLED)
    for (int32_t i = prompt; i < text.length; i++) printf("%d%c", text.tokens[i], i + 1 < text.length ? ' ' : '\n');
  else
    fprintf(stderr, "embed: %s\n", status == LD_MEMORY ? "not enough memory" : ld_last_error());
  ld_session_free(session);
  ld_model_free(model);
  ld_gguf_free(file);
  free(text.tokens);
  return status == LD_OK ? 0 : status == LD_CANCELLED ? 3 : 1;
}
