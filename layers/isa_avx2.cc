#define TROUPE_ISA_NAMESPACE avx2
#include "layers/isa_kernels.h"
