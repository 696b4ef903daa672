#define TROUPE_ISA_NAMESPACE avx512_bf16
#include "layers/isa_kernels.h"
