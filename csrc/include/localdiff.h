/* localdiff.h - the C interface of localdiff, the local runtime for diffusion language models. Plain C11.
 *
 * This header is the authority: the Python binding is generated from it and tests compare the two.
 *
 *   ld_gguf *file;
 *   ld_model *model;
 *   ld_session *session;
 *   ld_gguf_open("model.gguf", LD_ACCESS_MAP, &file);
 *   ld_model_open(file, NULL, &model);
 *   ld_session_create(model, NULL, &session);
 *   ld_canvas canvas = {.struct_size = sizeof canvas, .tokens = ids, .length = n, .score = holes, .n_score = k,
 *                       .logit_shift = 1, .token = out};
 *   ld_session_propose(session, &canvas, 1);
 *
 * Rules
 *   - Every function except getters and frees returns ld_status; LD_OK is 0. ld_last_error() describes the last failure
 *     of the calling thread in one sentence. Nothing else crosses the interface: no exception, exit, abort or print.
 *   - Every struct starts with struct_size = sizeof(the struct); structs only grow at the end. A zero field means its
 *     default. NULL options mean all defaults.
 *   - ld_gguf and ld_model are immutable and may be shared between threads; they must outlive what was made from them.
 *     An ld_session belongs to one caller at a time (LD_BUSY otherwise); only ld_session_cancel may be called beside it.
 *   - *_free(NULL) does nothing.
 */
#ifndef LOCALDIFF_H
#define LOCALDIFF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LD_API
#define LD_API __attribute__((visibility("default")))
#endif

typedef int32_t ld_status;
#define LD_OK 0
#define LD_INVALID 1     /* an argument is out of range or inconsistent */
#define LD_FILE 2        /* the file is missing, damaged or not supported */
#define LD_MEMORY 3      /* memory could not be had */
#define LD_CANCELLED 4   /* ld_session_cancel was called; the session stays usable */
#define LD_NUMERIC 5     /* the model produced NaN or infinity */
#define LD_BUSY 6        /* the session is in use by another thread */
#define LD_INTERNAL 7    /* a defect in localdiff; the session must be freed */

#define LD_ABI 1
LD_API uint32_t ld_abi(void);            /* LD_ABI of the library; compare with the header's */
LD_API const char *ld_version(void);     /* "0.1.0" */
LD_API const char *ld_last_error(void);  /* of the calling thread; valid until its next failing call; never NULL */

/* ---- kernel rows: one implementation of the CPU arithmetic per instruction set ---- */
LD_API int32_t ld_isa_count(void);
LD_API const char *ld_isa_name(int32_t index);       /* best first: "avx512_vnni", "avx2", "scalar"; NULL past the end */
LD_API int32_t ld_isa_supported(int32_t index);      /* 1 where this processor can run it */

/* Loads a device plug-in library, a path for ld_model_options.device; fails with the reason where it cannot be used here.
 * A process takes one plug-in and keeps it. */
LD_API ld_status ld_device_load(const char *path);
/* Bytes of the device's memory. */
LD_API ld_status ld_device_memory(const char *path, uint64_t *free, uint64_t *total);

/* ---- files ---- */
typedef struct ld_gguf ld_gguf;

#define LD_ACCESS_MAP 0   /* memory-map: starts at once; the file must not shrink while in use */
#define LD_ACCESS_READ 1  /* read into memory */

typedef struct ld_metadata {
  uint32_t struct_size;
  int32_t type;         /* GGUF value type 0..12 */
  int32_t element;      /* element type when type is array (9), else -1 */
  const char *key;      /* not terminated */
  uint64_t key_length;
  uint64_t count;       /* array elements, bytes of a string, else 1 */
  const void *data;     /* as in the file, little-endian; strings inside arrays are u64 length + bytes */
  uint64_t bytes;
} ld_metadata;

typedef struct ld_tensor {
  uint32_t struct_size;
  int32_t type;         /* GGML tensor type */
  const char *type_name;
  const char *name;     /* not terminated */
  uint64_t name_length;
  int32_t n_dims;
  int32_t reserved;
  uint64_t dims[4];     /* fastest first, unused are 1 */
  const void *data;
  uint64_t bytes;
} ld_tensor;

/* The path of the first part of a split model, NAME-00001-of-00003.gguf, opens all parts as one. */
LD_API ld_status ld_gguf_open(const char *path, int32_t access, ld_gguf **out);
LD_API void ld_gguf_free(ld_gguf *file);
LD_API uint64_t ld_gguf_metadata_count(const ld_gguf *file);
LD_API uint64_t ld_gguf_tensor_count(const ld_gguf *file);
LD_API ld_status ld_gguf_metadata(const ld_gguf *file, uint64_t index, ld_metadata *out);
LD_API ld_status ld_gguf_tensor(const ld_gguf *file, uint64_t index, ld_tensor *out);
/* Decodes `rows` rows of tensor `index` from row `first` to float32; out holds rows * dims[0] values. */
LD_API ld_status ld_gguf_decode(const ld_gguf *file, uint64_t index, uint64_t first, uint64_t rows, float *out);

/* ---- quantiser ---- */
typedef struct ld_quantize_options {
  uint32_t struct_size;
  int32_t threads;          /* 0 = all the process may use */
  const float *importance;  /* [columns] cost of a squared error in each column, not negative; NULL = all alike */
} ld_quantize_options;

/* Whether ld_quantize_rows writes a GGML tensor type: 1 or 0. */
LD_API int32_t ld_quantize_supported(int32_t type);
/* Writes float32 values [rows][columns] as blocks of a tensor type. out_bytes, the room at out, must be exactly what
 * they take. The bytes do not depend on threads, processor or how rows are divided over calls. */
LD_API ld_status ld_quantize_rows(int32_t type, const float *from, uint64_t rows, uint64_t columns,
                                  const ld_quantize_options *options, void *out, uint64_t out_bytes);

/* ---- texts that must match ---- */
/* A finite automaton over the tokens of a vocabulary; immutable, may be shared between threads. */
typedef struct ld_automaton ld_automaton;

typedef struct ld_automaton_table {
  uint32_t struct_size;
  int32_t vocab, states;
  int32_t classes;          /* sets of tokens that do the same in every state */
  const int32_t *class_of;  /* [vocab] the class of each token; `classes` where it is never allowed */
  const int32_t *first;     /* [states + 1] where the edges of each state begin, from 0 */
  const int32_t *kind;      /* [first[states]] the class of each edge, ascending within a state */
  const int32_t *target;    /* [first[states]] the state that it leads to */
  const int32_t *distance;  /* [states] the fewest tokens after which a text may end, 0 where it may end there */
} ld_automaton_table;

/* The table is copied. A class has at least one token. */
LD_API ld_status ld_automaton_create(const ld_automaton_table *table, ld_automaton **out);
LD_API void ld_automaton_free(ld_automaton *automaton);

/* fits receives 1 or 0: whether a text that goes on from `state` can hold these tokens [length], -1 where any may stand,
 * and end `left` tokens behind them at the latest. */
LD_API ld_status ld_automaton_fits(const ld_automaton *automaton, int32_t state, const int32_t *tokens, int32_t length,
                                   int32_t left, int32_t *fits);

/* ---- models ---- */
typedef struct ld_model ld_model;

typedef struct ld_model_options {
  uint32_t struct_size;
  int32_t threads;      /* for repacking; 0 = all the process may use */
  const char *isa;      /* kernel row by name; NULL = the best supported one */
  int32_t plan;         /* 1 = weights are counted, not packed: sizes can be asked for, sessions cannot be created */
  int32_t n_adapters;   /* LoRA adapters, added to the layers while they run */
  const ld_gguf *const *adapters;  /* [n_adapters] files for this architecture; not needed after the call */
  const float *adapter_scales;     /* [n_adapters]; NULL = 1 each */
  const char *device;              /* NULL or "cpu", or the path of a device plug-in library */
  int32_t gpu_layers;              /* of a plug-in's device, which has the last layers and the head, the processor the
                                    * others: 0 = as many as its memory holds, -1 = none but the head, else how many */
} ld_model_options;

typedef struct ld_model_info {
  uint32_t struct_size;
  int32_t vocab, dim, layers, heads, kv_heads, head_dim, ffn_dim, context_length;
  uint64_t parameters;
  uint64_t weight_bytes;   /* held in memory after packing */
  const char *arch;
  const char *isa;
  const char *skipped;     /* tensors of the file that the model does not need, as a sentence; "" where there are none */
  int32_t lengths;         /* classes of its length head, see ld_session_lengths; 0 = it has none */
  int32_t feedback;        /* 1 = its rows can be told what an earlier call expected of them, see ld_canvas */
  int32_t gpu_layers;      /* that a plug-in's device computes */
} ld_model_info;

LD_API ld_status ld_model_open(const ld_gguf *file, const ld_model_options *options, ld_model **out);
LD_API void ld_model_free(ld_model *model);
LD_API ld_status ld_model_get_info(const ld_model *model, ld_model_info *out);

/* Bytes of memory; the same for a model that was opened to plan as for one that was packed. */
typedef struct ld_model_memory {
  uint32_t struct_size;
  int32_t reserved;
  uint64_t weights;     /* packed weights, whole pages */
  uint64_t tables;      /* tables that stay in the file: of them only rows that are looked up come into memory */
  uint64_t opening;     /* the most at one time while opening: packed weights and the file's bytes of one of them */
  uint64_t device_weights; /* of a plug-in's device, in its own memory, which the others leave out */
} ld_model_memory;
LD_API ld_status ld_model_get_memory(const ld_model *model, ld_model_memory *out);

/* ---- sessions ---- */
typedef struct ld_session ld_session;

/* Arithmetic of quantised weights. Exact: int8 products in the file's own blocks, inputs rounded per 32 values. Fast:
 * weights are rounded to int8 once more, with one scale per 128 values, as inputs are. */
#define LD_MATH_EXACT 0
#define LD_MATH_FAST 1

typedef struct ld_session_options {
  uint32_t struct_size;
  int32_t slots;        /* canvases that keep their state side by side; default 1 */
  int32_t slot_length;  /* positions per slot; default the model's context length */
  int32_t rows;         /* rows computed by one call at most, over all its canvases; default slots * slot_length */
  int32_t threads;      /* 0 = all the process may use */
  int32_t math;         /* LD_MATH_*: how quantised weights are multiplied */
} ld_session_options;

/* Bytes that a session takes, and those that it takes of the memory of a plug-in's device. */
LD_API ld_status ld_session_plan(const ld_model *model, const ld_session_options *options, uint64_t *bytes);
LD_API ld_status ld_session_plan_device(const ld_model *model, const ld_session_options *options, uint64_t *bytes);
LD_API ld_status ld_session_create(const ld_model *model, const ld_session_options *options, ld_session **out);
LD_API void ld_session_free(ld_session *session);

/* Which positions a row at position p sees, always within [0, length). */
#define LD_ATTENTION_FULL 0
#define LD_ATTENTION_CAUSAL 1
#define LD_ATTENTION_BLOCK_CAUSAL 2   /* up to the end of p's block of block_length positions */
#define LD_ATTENTION_PREFIX_CAUSAL 3  /* p < prefix: causal; other positions see everything */

/* What a call hands to later ones, for models with ld_model_info.feedback. A row that is told takes in the embedding that
 * was expected at its position: that of each token times softmax(logits of the model / temperature), temperature 0
 * standing for 1, as the last call with LD_FEEDBACK_LEAVE scored it. Others are told nothing. */
#define LD_FEEDBACK_LEAVE 1  /* scored positions leave what is expected of them; not in ld_session_logits */
#define LD_FEEDBACK_TAKE 2   /* scored positions that are computed are told; each must have left something */

/* The distribution that probability, margin, entropy and alternatives are taken from. */
#define LD_SCORE_RAW 0      /* softmax of the logits */
#define LD_SCORE_SAMPLED 1  /* the distribution the token is drawn from: temperature, top_k and top_p applied */

typedef struct ld_canvas {
  uint32_t struct_size;
  int32_t slot;             /* which state: 0 <= slot < slots */
  const int32_t *tokens;    /* [length] */
  int32_t length;
  int32_t attention;        /* LD_ATTENTION_* */
  int32_t block_length;
  int32_t prefix;
  const int32_t *compute;   /* [n_compute] positions to recompute, ascending; NULL = all. Others keep their state. */
  int32_t n_compute;
  int32_t n_score;
  const int32_t *score;     /* [n_score] positions whose token is asked for, ascending */
  int32_t logit_shift;      /* 1: position p is predicted by the row of p - 1 (position 0 by its own row) */
  int32_t top_k;            /* 0 = off */
  float temperature;        /* 0 = argmax */
  float top_p;              /* 0 or 1 = off */
  uint64_t seed;
  int32_t step;             /* with seed and position the key of the random numbers */
  int32_t scores_from;      /* LD_SCORE_* */
  const int32_t *forbidden; /* [n_forbidden] tokens that are never proposed */
  int32_t n_forbidden;
  int32_t alternatives;     /* how many alternatives per position, 0..64 */
  /* results, each [n_score] or NULL */
  int32_t *token;
  float *probability;       /* of token */
  float *margin;            /* largest minus second largest probability */
  float *entropy;           /* in nats */
  int32_t *alternative_token;        /* [n_score][alternatives], likeliest first */
  float *alternative_probability;    /* [n_score][alternatives] */
  /* [length] the position each token stands for, where tokens are stored in another order than they are read (rotation
   * and position embeddings follow it; attention, compute and score count places), each less than slot_length; NULL = the
   * same order. Not with logit_shift, nor for models with windows. */
  const int32_t *positions;
  /* result or NULL: [n_compute], [length] where compute is NULL. How far the values of each computed row are from those
   * held before: 1 - cosine, mean over the layers; 1 where none were held. */
  float *value_drift;
  /* Changes of the logits, in this order and before all else; what follows is as if they came from the model. */
  /* Classifier-free guidance: with u of the next canvas of the call, its unconditional companion, logits become
   * u + (guidance + 1) * (logits - u), -1000 to 1000, 0 = off. The companion scores as many positions, the i-th standing
   * for the i-th here; of the results it may ask for logits and value_drift only. */
  float guidance;
  float repetition_penalty; /* 0 or 1 = off, else 0.01 to 100: logits above 0 are divided by it, others multiplied */
  const int32_t *repeated;  /* [n_repeated] the tokens it applies to, ascending */
  int32_t n_repeated;
  int32_t n_bias;
  const int32_t *bias_token; /* [n_bias] ascending */
  const float *bias;         /* [n_bias] added to their logits, -1e9 to 1e9 */
  const uint32_t *allowed;   /* [n_score][(vocab + 31) / 32] bit t % 32 of word t / 32: token t may be proposed; NULL = all */
  float *logits;             /* result or NULL: [n_score][vocab] of the model, before all changes */
  /* The last n_shadow of the tokens are shadows, which ask once more for tokens that are there. Shadow i stands where the
   * row that predicts position hidden[i] stands, sees all places of the canvas but hidden[i], and all shadows; the canvas
   * before them does not see them. Scored, at its place, it is its own row and stands for hidden[i], whatever logit_shift
   * is: `token` is not proposed but the one at hidden[i]. Shadows are computed in each call that has them. Not with
   * positions, nor for models with windows. */
  const int32_t *hidden;     /* [n_shadow] ascending, each less than length - n_shadow */
  int32_t n_shadow;
  int32_t feedback;          /* LD_FEEDBACK_*, added; 0 = none */
  /* In ld_logits_propose alone: the tokens are those of one text that the automaton accepts (arXiv:2505.23061) together
   * with what stands there. All scored positions are among the n_match from match_first on. At temperature 0 it is the
   * likeliest text; else it is drawn from left to right, each token given those before it and that the text matches, with
   * temperature, top_k and top_p. Scores are those of the tokens given that the text matches; sampled ones, what each was
   * drawn from, times the probability of what came before it. Not with forbidden or allowed. NULL = none. */
  const ld_automaton *automaton;
  const int32_t *match_token; /* [n_match] what stands there; -1 where nothing is known, as at scored positions */
  int32_t match_first, n_match;
  int32_t match_state;        /* of the automaton before match_first */
  int32_t match_left;         /* positions behind, of which the text may use any number */
} ld_canvas;

/* One forward pass over all canvases; fills their results. Slots must differ. Every position that a computed row sees
 * must have been computed in this call or an earlier one. */
LD_API ld_status ld_session_propose(ld_session *session, ld_canvas *canvases, int32_t n_canvases);

/* The same forward pass; out receives the raw logits, [sum of n_score][vocab], in canvas order. */
LD_API ld_status ld_session_logits(ld_session *session, const ld_canvas *canvases, int32_t n_canvases, float *out);

/* How many tokens the answer to a prompt has: a forward pass over its tokens [length] in `slot`, which all see each other,
 * then the model's length head. out [lengths] receives logits; class c stands for c + 1 tokens before the token that ends
 * the answer (arXiv:2308.12219). */
LD_API ld_status ld_session_lengths(ld_session *session, int32_t slot, const int32_t *tokens, int32_t length, float *out);

/* The results of canvases whose logits come from elsewhere, by the rules of ld_session_propose: `logits`, [n_score][vocab],
 * is read and left alone; a guided canvas and its companion stand beside each other. There is no forward pass, so slot,
 * tokens, attention, compute and logit_shift do not count; positions must be NULL, n_shadow 0. */
LD_API ld_status ld_logits_propose(int32_t vocab, ld_canvas *canvases, int32_t n_canvases);

/* Makes the running call, or the next one if none is running, return LD_CANCELLED soon. Callable from any thread. */
LD_API void ld_session_cancel(ld_session *session);

typedef struct ld_timings {
  uint32_t struct_size;
  int32_t threads;
  uint64_t forwards;
  uint64_t rows;
  double seconds_total, seconds_linear, seconds_attention, seconds_head, seconds_other;
} ld_timings;
LD_API ld_status ld_session_timings(const ld_session *session, ld_timings *out);

/* What the matrices of a model read while a session ran: how much an error in each of their columns costs. */
typedef struct ld_observation {
  uint32_t struct_size;
  int32_t matrices;        /* that the tensor holds: its experts, else 1 */
  uint64_t columns;
  const char *name;        /* of the tensor */
  const double *squares;   /* [matrices][columns] sums of the squares of their inputs */
  const uint64_t *rows;    /* [matrices] how many inputs were added up */
} ld_observation;

/* From now on (on = 1) forward passes add to sums that begin at 0, in an order that threads and the division of rows over
 * calls do not change; on = 0 ends it and gives the sums up. A call that fails leaves them incomplete. */
LD_API ld_status ld_session_observe(ld_session *session, int32_t on);
/* How many tensors are observed. */
LD_API uint64_t ld_session_observation_count(const ld_session *session);
/* What was added up for one of them; the pointers are valid until the next ld_session_observe or ld_session_free. */
LD_API ld_status ld_session_observation(const ld_session *session, uint64_t index, ld_observation *out);

/* The state of the first `length` positions of a slot, as bytes that outlive the process: the shape of the model, the
 * arithmetic, a checksum, float32 keys and values. Loading refuses bytes that are damaged or of another shape; that they
 * come from the same weights is the caller's to know. */
LD_API ld_status ld_session_state_bytes(const ld_session *session, int32_t length, uint64_t *bytes);
/* Every one of the positions must have been computed; out_bytes is what ld_session_state_bytes says. */
LD_API ld_status ld_session_save(ld_session *session, int32_t slot, int32_t length, void *out, uint64_t out_bytes);
/* Afterwards the positions count as computed and the others of the slot as never computed; *length is how many they are.
 * A refusal leaves the slot as it was. */
LD_API ld_status ld_session_load(ld_session *session, int32_t slot, const void *data, uint64_t bytes, int32_t *length);

/* What this machine can do at best with a kernel row, all threads together: the ceilings that speeds are compared with. */
typedef struct ld_peak {
  uint32_t struct_size;
  int32_t threads;
  double int8_gops;     /* 1e9 int8 multiply-adds per second in registers, each counted as two */
  double f32_gflops;    /* the same for float32 */
  double memory_gbps;   /* 1e9 bytes read from memory per second */
  double bf16_gflops;   /* float32 sums of bfloat16 products; 0 where nothing is made for them */
} ld_peak;
/* isa and threads as in ld_model_options; takes about `seconds`, 0 = 0.3, and 512 MiB of memory. */
LD_API ld_status ld_measure_peak(const char *isa, int32_t threads, double seconds, ld_peak *out);
/* The same for the device of a plug-in: int8 and bfloat16 by its tensor cores, memory_gbps by copying, half of it reads. */
LD_API ld_status ld_measure_device_peak(const char *path, double seconds, ld_peak *out);

#ifdef __cplusplus
}
#endif
#endif
