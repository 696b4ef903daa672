#define TROUPE_TREE_SUM avx512
#include "comm/tree_sum_kernel.h"
