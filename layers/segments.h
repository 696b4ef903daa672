// layers/segments.h: the runs of inputs that share a scale in a quantised product.
//
// A leaf (layers/linear.h) is cut at every multiple of the format's group of inputs, counted from
// input 0 of the whole row, so that a shard that begins inside a group has the segments that one
// rank has. In packed weights and in quantised rows the segments follow each other, each padded
// with zeros to a multiple of kSegmentPad inputs.
#pragma once

#include <cstdint>

namespace troupe::layers {

inline constexpr int64_t kSegmentPad = 8;
inline constexpr float kSmallestMagnitude = 0x1p-100f;  // a segment below it is all zero

// Always inlined: called by kernels of every instruction set (see layers/simd.h).
[[gnu::always_inline]] inline int64_t padded_size(int64_t inputs) {
  return (inputs + kSegmentPad - 1) & -kSegmentPad;
}

// Where the segment that begins at k ends. `offset`: inputs cut off the first group.
[[gnu::always_inline]] inline int64_t segment_end(int64_t group, int64_t offset, int64_t k,
                                                  int64_t leaf_end) {
  const int64_t group_end = ((k + offset) / group + 1) * group - offset;
  return group_end < leaf_end ? group_end : leaf_end;
}

}  // namespace troupe::layers
