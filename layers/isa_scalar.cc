#define TROUPE_ISA_NAMESPACE scalar
#include "layers/isa_kernels.h"
