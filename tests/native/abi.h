// The library's C interface (`abi.cpp`), as the test programs call it.
#pragma once

#include "step.h"

extern "C" {
const char* mmedge_kernels(const char* name);
int mmedge_open(const mmedge::Plan*, const mmedge::Matrix*, const mmedge::Block*, const uint8_t*, uint64_t, int, int, const char*,
                mmedge::Engine**, char*, int);
void mmedge_close(mmedge::Engine*);
int mmedge_cache(const mmedge::Engine*, int64_t, int64_t, mmedge::Cache**, char*, int);
void mmedge_cache_close(mmedge::Cache*);
int mmedge_cache_copy(const mmedge::Engine*, const mmedge::Cache*, const int64_t*, const int64_t*, int64_t, mmedge::Cache*, const int64_t*,
                      char*, int);
int mmedge_state_copy(const mmedge::Engine*, const mmedge::Cache*, const int64_t*, int64_t, mmedge::Cache*, const int64_t*, char*, int);
int64_t mmedge_position_bytes(const mmedge::Engine*);
int64_t mmedge_state_bytes(const mmedge::Engine*);
int mmedge_encode(mmedge::Engine*, const int64_t*, const int64_t*, int64_t, mmedge::Cache**, char*, int);
int mmedge_read(mmedge::Engine*, mmedge::Cache*, const int64_t*, const int64_t*, const int64_t*, const mmedge::Cache* const*, const int64_t*,
                int64_t, float*, char*, int);
}
