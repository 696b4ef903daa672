// layers/kernels.h: the vector kernels behind the layers, one table per instruction set.
//
// The layers check shapes, then call through kernels(). Arguments are plain pointers and numbers:
// the files that implement them (*_kernel.h) may use nothing that is inline elsewhere (see simd.h).
// Kernels neither allocate nor throw.
#pragma once

#include <cstddef>
#include <cstdint>

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
  const float* x = nullptr;  // [tokens, cols]
  int64_t x_stride = 0;
  float* y = nullptr;  // [tokens, rows]
  int64_t y_stride = 0;
  int64_t tokens = 0;
  bool round_to_bf16 = false;
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
  bool round_to_bf16 = false;
};

// The online softmax of one head of one token.
struct MlaHead {
  float greatest = -__builtin_inff();  // score so far
  float sum = 0;                       // of exp(score - greatest)
  float rescale = 0;                   // exp(previous greatest - greatest)
};

// One token of layers/mla.h, all heads. padded_*: rounded up to whole vectors.
struct MlaArgs {
  const float* q = nullptr;              // [num_heads, width]
  float* out = nullptr;                  // [num_heads, lora]
  const std::byte* layer = nullptr;      // block 0 of this layer
  int64_t block_bytes = 0;               // from one block to the next
  const int32_t* block_table = nullptr;  // covers [0, position]
  int64_t block_size = 0;                // positions in a block
  int64_t position = 0;
  int64_t num_heads = 0;
  int64_t width = 0;  // elements of a cache row
  int64_t padded_width = 0;
  int64_t lora = 0;  // of them, the latent
  int64_t padded_lora = 0;
  int64_t chunk = 0;  // positions that share one rescaling, a multiple of 16
  float scale = 0;
  // The working set, in the memory of the caller.
  float* rows = nullptr;      // [chunk, padded_width]
  float* padded_q = nullptr;  // [num_heads, padded_width]
  float* scores = nullptr;    // [num_heads, chunk]
  float* values = nullptr;    // [num_heads, padded_lora]
  MlaHead* heads = nullptr;   // [num_heads]
};

struct Kernels {
  void (*linear_f32)(const LinearArgs&);
  void (*linear_bf16)(const LinearArgs&);
  void (*linear_fp8)(const LinearArgs&);
  void (*rms_norm_row)(const RmsNormArgs&);
  void (*swiglu_row)(const SwigluArgs&);
  // mla_kernel.h: template <class T> void mla(const MlaArgs&), T the type of the cache.
  void (*mla_f32)(const MlaArgs&);
  void (*mla_bf16)(const MlaArgs&);
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

}  // namespace troupe::layers
