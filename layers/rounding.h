// layers/rounding.h: how a result is rounded when it leaves an operation.
#pragma once

namespace troupe::layers {

// Not at all, or to bfloat16 (the value is kept in a float all the same: every activation buffer is
// fp32, its precision is the dtype's). As a dtype: kNone is float32, kBf16 bfloat16.
enum class Rounding { kNone, kBf16 };

}  // namespace troupe::layers
