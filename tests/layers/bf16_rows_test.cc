#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "every_isa.h"
#include "layers/kernels.h"

namespace troupe::layers {
namespace {

TEST(Bf16Rows, AreRoundedAndWidenedElementByElementAndNoFurther) {
  std::vector<float> x = normal_floats(70, 1);
  x[3] = std::numeric_limits<float>::infinity();
  x[20] = -0.0f;
  for (const int64_t count : {0, 1, 15, 16, 17, 31, 48, 69}) {
    on_every_isa([&] {
      std::vector<Bf16> rounded(count + 1, Bf16{0x1234});
      kernels().round_to_bf16_row(x.data() + 1, count, rounded.data());
      std::vector<float> widened(count + 1, -5.0f);
      kernels().widen_bf16_row(rounded.data(), count, widened.data());

      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(rounded[i].bits, to_bf16(x[i + 1]).bits) << i << " of " << count;
        ASSERT_TRUE(same_bits(widened[i], to_float(rounded[i]))) << i << " of " << count;
      }
      EXPECT_EQ(rounded[count].bits, 0x1234);
      EXPECT_EQ(widened[count], -5.0f);
    });
  }
}

}  // namespace
}  // namespace troupe::layers
