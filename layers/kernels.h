// layers/kernels.h: the vector kernels behind the layers, one table per instruction set.
//
// The layers check shapes, then call through kernels(). Arguments are plain pointers and numbers:
// the files that implement them (*_kernel.h) may use nothing that is inline elsewhere (see simd.h).
// Kernels neither allocate nor throw.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "layers/segments.h"

namespace troupe::layers {

// y[t][n] = sum over k of W[n][k] x[t][k], as layers/linear.h defines it.
struct LinearArgs {
  const std::byte* weights = nullptr;  // [tiles][cols][16]
  const float* scales = nullptr;       // [tiles][k_blocks][16], fp8 only
  int64_t rows = 0;                    // of W
  int64_t cols = 0;
  int64_t k_blocks = 0;
  int64_t block_cols = 0;              // inputs that share a scale
  int64_t block_offset = 0;            // inputs cut off the first block
  const int64_t* leaf_ends = nullptr;  // [num_leaves], the last is cols
  int num_leaves = 1;
  const std::byte* x = nullptr;  // [tokens] rows in the form that the kernel reads
  int64_t x_row_bytes = 0;
  float* y = nullptr;  // [tokens, rows]
  int64_t y_stride = 0;
  int64_t tokens = 0;
  bool round_to_bf16 = false;
};

// The same of quantised weights and rows (layers/quantize.h).
struct QuantizedLinearArgs {
  const uint8_t* tiles = nullptr;  // [tiles, tile_bytes]: scales, then codes
  int64_t tile_bytes = 0;
  int64_t tile_codes_at = 0;
  int64_t rows = 0;                    // of W
  int64_t group_cols = 0;              // inputs of a group
  int64_t group_offset = 0;            // inputs cut off the first group
  const int64_t* leaf_ends = nullptr;  // [num_leaves], the last is cols
  int num_leaves = 1;
  const int8_t* x = nullptr;  // [tokens, row_bytes]: codes, scales, offsets
  int64_t row_bytes = 0;
  int64_t row_scales_at = 0;
  int64_t row_offsets_at = 0;
  float* y = nullptr;  // [tokens, rows]
  int64_t y_stride = 0;
  int64_t tokens = 0;
  bool round_to_bf16 = false;
};

// One row of inputs for it.
struct QuantizeArgs {
  const float* x = nullptr;            // [cols]
  const int64_t* leaf_ends = nullptr;  // [num_leaves], the last is cols
  int num_leaves = 1;
  int64_t group_cols = 0;
  int64_t group_offset = 0;
  int32_t weight_offset = 0;
  int8_t* codes = nullptr;     // [padded cols + 8]
  float* scales = nullptr;     // [segments]
  int32_t* offsets = nullptr;  // [segments]
};

// One row of layers/rms_norm.h.
struct RmsNormArgs {
  const float* x = nullptr;       // [width]
  const float* weight = nullptr;  // [width]
  float* y = nullptr;             // [width], may be x
  int64_t width = 0;
  float eps = 0;
  bool round_to_bf16 = false;
};

// One row of layers/swiglu.h.
struct SwigluArgs {
  const float* gate = nullptr;  // [width]
  const float* up = nullptr;    // [width]
  float* out = nullptr;         // [width]
  int64_t width = 0;
  float alpha = 0, limit = 0;  // of the clamped one
  bool round_to_bf16 = false;
};

// The online softmax of one head of one token.
struct AttentionHead {
  float greatest = -__builtin_inff();  // score so far
  float sum = 0;                       // of exp(score - greatest)
  float rescale = 0;                   // exp(previous greatest - greatest)
};

// One token of a sequence, and its working set in the memory of the caller.
struct AttentionToken {
  const float* q = nullptr;    // [num_heads, width]
  float* out = nullptr;        // [num_heads, value_width]
  int64_t first_position = 0;  // seen: [first_position, position]
  int64_t position = 0;
  float* padded_q = nullptr;       // [num_heads, padded_width]
  float* sums = nullptr;           // [num_heads, padded_value_width]
  AttentionHead* heads = nullptr;  // [num_heads]
};

// Tokens of one sequence, in the heads that share one key and value head (layers/attention.h). A
// cache row holds the key at key_offset and the value at value_offset. padded_*: rounded up to
// whole vectors.
struct AttentionArgs {
  const AttentionToken* tokens = nullptr;  // [num_tokens]
  int64_t num_tokens = 0;
  const float* sinks = nullptr;          // [num_heads], or null: a score without a value
  const std::byte* layer = nullptr;      // block 0 of this layer
  int64_t block_bytes = 0;               // from one block to the next
  const int32_t* block_table = nullptr;  // covers all positions that are seen
  int64_t block_size = 0;                // positions in a block
  int64_t num_heads = 0;
  int64_t row_bytes = 0;  // of a cache row
  // A row of int8 (layers/kv_cache.h); 0 of other types.
  int64_t int8_width = 0, int8_group = 0;
  int64_t bf16_at = 0, codes_at = 0;
  int64_t key_offset = 0;
  int64_t width = 0;  // of the key
  int64_t padded_width = 0;
  int64_t value_offset = 0;
  int64_t value_width = 0;
  int64_t padded_value_width = 0;
  int64_t chunk = 0;  // positions that share one rescaling, a multiple of 16
  float scale = 0;
  // The working set that tokens share.
  float* keys = nullptr;    // [chunk, padded_width]
  float* values = nullptr;  // [chunk, value_stride]; keys itself where values begin the keys
  int64_t value_stride = 0;
  float* scores = nullptr;  // [num_heads, chunk]
};

struct Kernels {
  void (*linear_f32)(const LinearArgs&);
  void (*linear_bf16)(const LinearArgs&);
  void (*linear_fp8)(const LinearArgs&);
  // Over rows of bf16 (layers/linear_dot.h); null where the instruction set has no such product.
  void (*linear_dot_bf16)(const LinearArgs&);
  void (*linear_dot_fp8)(const LinearArgs&);
  void (*linear_int8)(const QuantizedLinearArgs&);
  void (*linear_int4)(const QuantizedLinearArgs&);
  void (*linear_mxfp4)(const QuantizedLinearArgs&);
  void (*quantize_row)(const QuantizeArgs&);
  void (*round_to_bf16_row)(const float* x, int64_t count, Bf16* out);
  void (*widen_bf16_row)(const Bf16* x, int64_t count, float* out);
  void (*rms_norm_row)(const RmsNormArgs&);
  float (*read_floats)(const float* x, int64_t count);  // peak_kernel.h
  int64_t (*fma_chains)(int64_t rounds, float* sum);    // peak_kernel.h
  void (*swiglu_row)(const SwigluArgs&);
  void (*clamped_swiglu_row)(const SwigluArgs&);
  // attention_kernel.h: template <class T> attention(args), T the type of the cache.
  void (*attention_f32)(const AttentionArgs&);
  void (*attention_bf16)(const AttentionArgs&);
  void (*attention_int8)(const AttentionArgs&);
  // kv_codes_kernel.h
  float (*quantize_kv)(const float* x, int64_t count, float given, int8_t* codes);
  // The same over a bf16 cache by products of bf16 (layers/attention.h); null where there are none.
  void (*attention_dot)(const AttentionArgs&) = nullptr;
};

// The table of active_isa().
const Kernels& kernels();

namespace scalar {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}

}  // namespace troupe::layers
