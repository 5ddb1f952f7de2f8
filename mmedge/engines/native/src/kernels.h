// The kernels that a processor offers: what a step is made of, besides the order in which it happens (`step.cpp`).
//
// The numeric contract, which every instruction set keeps to the bit: what a row gives depends on the row alone.
//   linear layers   activations are quantized to int8, row by row and block by block; the products of a block are added as integers,
//                   exactly; blocks are added in float32 by fused multiply-add, one after the other from the first to the last
//   float32         one fused multiply-add for each input, from the first to the last (columns), or eight sums, one for each
//                   place modulo 8, that are added in the order of `sum` (rows)
//   attention       a score is one fused multiply-add for each component, from the first to the last, and a weighted sum one for each
//                   position; exponentials are added in eight sums, one for each position modulo 8
//   cache           float16 is rounded to nearest, ties to even, and at most ±65504; int8 is x · (127 / largest) likewise, with the
//                   scale largest / 127. A score is multiplied by its key's scale, and a weight by its value's
//   convolutions    one fused multiply-add for each token that is seen, from the oldest to the token itself
//   gated delta     a state's sums over keys are one fused multiply-add for each, from the first to the last; tokens one by one
// So results are the same for one row and for many, for one thread and for several, and for several tokens at once.
#pragma once

#include "plan.h"

namespace mmedge {

constexpr int CODE_BYTES = 2;  // room of an activation's code: instruction sets keep it in 8 or 16 bits
constexpr int GROUP = 16;      // outputs that are computed together at most
constexpr int CHUNK_ROWS = 256;  // that are multiplied at once at most

// A matrix whose places were checked.
struct Weights {
    Storage storage;
    int block, blocks;  // inputs = blocks · block at most
    int outputs, inputs;
    int64_t stride;  // of float32 columns
    const uint8_t* codes;
    const int8_t* columns;     // codes of an `int8_columns` matrix, which is an `int8_blocks` one but for where these lie
    const uint8_t* panels;     // the same as the kernels multiply them; null where they are not packed
    const float* floats;
    const float* scales;       // one of these two
    const uint16_t* half_scales;
    const float* bias;
};

// Rows of activations in int8: codes as the instruction set keeps them, and for each block its scale and the sum of its codes.
struct Activations {
    uint8_t* codes;  // (rows, code_stride) bytes
    float* scales;   // (rows, block_stride)
    int32_t* sums;   // (rows, block_stride)
    int64_t code_stride, block_stride;
};

struct Product {
    const Weights* weights;
    const Activations* quantized;  // for integers
    const float* floats;           // for float32, (rows, float_stride)
    int64_t float_stride;
    int rows;
    float* out;  // (rows, out_stride)
    int64_t out_stride;
    bool add;  // to what is there
};

// Where the keys and values of one head lie, in groups of eight positions: keys as (head_width, 8), values as (8, head_width), behind
// eight scales where there are any.
struct Kept {
    uint8_t* keys;
    uint8_t* values;
    CacheType type;
    int head_width;
};

// Bytes of eight positions' keys, or of their values.
inline int64_t group_bytes(CacheType type, int head_width) {
    const int64_t values = int64_t{8} * head_width;
    return type == CacheType::int8 ? values + 8 * sizeof(float) : values * (type == CacheType::float16 ? 2 : 4);
}

// What one query head sees.
struct Attended {
    const float* queries;  // (count, head_width), scaled and rotated
    int count;             // queries that see the same positions
    Kept kept;
    const float* bias;  // added to scores, by position; null for none
    int first, end;     // positions
    float* scores;  // scratch, (count, positions rounded up to 8)
    int64_t score_stride;
    float* out;  // (count, head_width)
};

// What a convolution over time gives for one token, channel by channel.
struct Convolved {
    const float* seen[MOST_TAPS];  // the inputs of the tokens that it sees, the oldest first, (channels) each
    const float* const* kernel;    // what each of them is multiplied by, (channels)
    const float* bias;             // (channels); null for none
    int taps;
    int first, end;                // channels that are computed
    float* out;                    // (channels)
};

// A step of one head of a gated delta layer (Yang et al. 2024): its state decays, and what it says of the key is moved towards the value.
struct Delta {
    const float* query;  // (key_width), scaled
    const float* key;    // (key_width), of length 1
    const float* value;  // (value_width)
    float decay, update;
    float* state;  // (key_width, value_width)
    int key_width, value_width;
    float* out;  // (value_width), what the new state says of the query
};

struct Kernels {
    const char* name;
    void (*norm)(const float* x, const float* weight, int width, float epsilon, float* out);
    void (*gate)(const float* opened, const float* up, int count, Activation how, float* out);  // how(opened) · up; `up` may be null
    // quantizes inputs from `first` to `end` - 1 of a row; `first` is a multiple of 64
    void (*quantize)(const float* x, int first, int end, const Weights& of, const Activations& out, int row);
    void (*multiply)(const Product& product, int first, int end, uint8_t* scratch);  // outputs from `first` to `end` - 1
    // Packs columns into panels, `panel_bytes` of them; returns false where they cannot be. Null where they are multiplied as they lie.
    bool (*pack)(const Weights& columns, uint8_t* panels);
    void (*rotate)(float* head, const float* cosines, const float* sines, int head_width);
    void (*keep)(const float* key, const float* value, const Kept& head, int position);  // (head_width) each
    void (*attend)(const Attended& attended);
    void (*look_up)(const Weights& table, int entry, float* out);
    void (*convolve)(const Convolved& convolved);
    void (*unit)(const float* x, int width, float length, float* out);  // x / |x| · length
    // What a head's update and decay are of their rates, for so many heads.
    void (*rates)(const float* update, const float* step, const float* step_bias, const float* slope, int heads, float* updates, float* decays);
    void (*move)(const Delta& delta);
};

inline int64_t panel_bytes(const Weights& columns) {
    return static_cast<int64_t>(columns.outputs + GROUP - 1) / GROUP * GROUP * columns.blocks * columns.block;
}

constexpr int64_t MULTIPLY_SCRATCH = 256 * 1024;  // bytes for each thread

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& emulated_vnni_kernels();  // in tests alone
#elif defined(__aarch64__)
const Kernels& neon_kernels();
const Kernels& dotprod_kernels();
const Kernels& i8mm_kernels();
#endif

}  // namespace mmedge
