// What Python and C++ exchange: the layer plan and the tensors it names, as plain structures.
//
// Every offset counts bytes from the beginning of the weights, which stay where they lie (a file that is mapped into memory);
// ABSENT stands for none. `model.cpp` checks each of them before anything is read. Knows no file, no text, no tokenizer.
#pragma once

#include <cstdint>

namespace mmedge {

constexpr int32_t PLAN_VERSION = 1;
constexpr int64_t ABSENT = -1;

// How a matrix, (outputs, inputs), is stored.
enum class Storage : int32_t {
    float32_rows = 1,     // (outputs, inputs)
    float32_columns = 2,  // (inputs, outputs)
    int8_blocks = 3,      // codes of 8 bits around 128, (outputs, blocks, block), and a scale for each block
    int4_blocks = 4,      // codes of 4 bits around 8, two in a byte, the first in the low bits
};

enum class ScaleType : int32_t { float32 = 1, float16 = 2 };

struct Matrix {
    Storage storage;
    int32_t block;  // weights that share a scale
    ScaleType scale_type;
    int32_t reserved;
    int64_t outputs, inputs;
    int64_t codes, scales, bias;
};

enum class Sublayer : int32_t { self_attention = 1, feed_forward = 2 };

// A sublayer: x + f(norm(x)). Matrices are named by their place in the list of matrices.
struct Block {
    Sublayer kind;
    int32_t window;  // how many positions back a token sees, itself included; 0 for all
    int32_t first;   // queries, keys and values; or the gate
    int32_t second;  // or the up projection
    int32_t out;     // the attention's output projection, or the down projection
    int32_t reserved;
    int64_t norm, query_norm, key_norm;
};

struct Plan {
    int32_t version;
    int32_t width, heads, kv_heads, head_width;
    int32_t vocabulary, positions;
    float epsilon, attention_scale;
    int32_t table, head;  // matrices: the embedding, and what gives logits
    int32_t matrix_count, block_count;
    int32_t reserved;
    int64_t norm;              // the last
    int64_t cosines, sines;    // of the rotary embedding, (positions, head_width / 2)
};

}  // namespace mmedge
