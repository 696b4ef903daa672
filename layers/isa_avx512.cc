#define TROUPE_ISA_NAMESPACE avx512
#include "layers/isa_kernels.h"
