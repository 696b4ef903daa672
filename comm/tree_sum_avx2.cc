#define TROUPE_TREE_SUM avx2
#include "comm/tree_sum_kernel.h"
