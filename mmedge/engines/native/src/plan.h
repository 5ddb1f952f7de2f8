// What Python and C++ exchange: the layer plan and the tensors it names, as plain structures.
//
// Every offset counts bytes from the beginning of the weights, which stay where they lie (a file that is mapped into memory);
// ABSENT stands for none. `model.cpp` checks each of them before anything is read. Knows no file, no text, no tokenizer.
#pragma once

#include <cstdint>

namespace mmedge {

constexpr int32_t PLAN_VERSION = 1;
constexpr int64_t ABSENT = -1;
constexpr int MOST_TAPS = 16;  // tokens that a convolution sees

// How a matrix, (outputs, inputs), is stored.
enum class Storage : int32_t {
    float32_rows = 1,     // (outputs, inputs)
    float32_columns = 2,  // (inputs, outputs)
    int8_blocks = 3,      // codes of 8 bits around 128, (outputs, blocks, block), and a scale for each block
    int4_blocks = 4,      // codes of 4 bits around 8, two in a byte, the first in the low bits
    int8_columns = 5,     // signed codes of 8 bits, (inputs, outputs), and a float32 scale for each output
};

enum class ScaleType : int32_t { float32 = 1, float16 = 2 };

// What keys and values are kept in; int8 with a float32 scale for each head and position.
enum class CacheType : int32_t { float32 = 0, float16 = 1, int8 = 2 };

struct Matrix {
    Storage storage;
    int32_t block;  // weights that share a scale
    ScaleType scale_type;
    int32_t stride;  // of float32 columns: from one input to the next; 0 for as many as there are outputs
    int64_t outputs, inputs;
    int64_t codes, scales, bias;
};

enum class Sublayer : int32_t { self_attention = 1, feed_forward = 2, cross_attention = 3, convolution = 4, gated_delta = 5 };

enum class Activation : int32_t { silu = 0, relu = 1, gelu = 2, sigmoid = 3 };  // GELU by its formula with a hyperbolic tangent

// A sublayer: x + f(norm(x)), or x + after_norm(f(norm(x))). Matrices are named by their place in the list of matrices.
struct Block {
    Sublayer kind;
    int32_t window;  // how many positions back a token sees, itself included; 0 for all
    int32_t first;   // queries, keys, values, and gates of what is attended to where it is gated; the queries of cross-attention; a
                     // convolution's gate, its output's gate and its values; queries, keys, values and gates of a gated delta layer;
                     // or the gate of a feed-forward layer
    int32_t second;  // the update's and the decay's rates of a gated delta layer; or the up projection; -1 where nothing is gated
    int32_t out;     // the output projection, or the down projection
    Activation activation;
    int64_t norm, query_norm, key_norm, after_norm;
    int64_t head_norm;       // of what a head of a gated delta layer gives
    int64_t cosines, sines;  // of a self-attention's rotary embedding, (positions, rotary_width / 2)
    int32_t rotary_width;    // how many of a head's values are turned, the first ones; 0 for none
    int32_t taps;            // of a convolution over time: how many tokens it sees, its own included
    int64_t kernel_bias;          // (channels)
    int64_t kernel[MOST_TAPS];    // (channels) each, the last one for the token itself
    int32_t gated;                // whether what a self-attention gives is multiplied by gates
    int32_t key_heads, value_heads, key_width, value_width;  // of a gated delta layer; a head of keys serves several of values
    int32_t reserved;
    int64_t step_bias, slope;     // of its decay, e^(slope · softplus(rate + bias)), (value_heads)
};

struct Plan {
    int32_t version;
    int32_t width, heads, kv_heads, head_width;
    int32_t vocabulary, positions;
    float epsilon, attention_scale, embedding_multiplier;
    int32_t table, head;  // matrices: the embedding, and what gives logits
    int32_t matrix_count, block_count;
    int32_t encoder_blocks;    // the first ones; 0 where there is no encoder
    CacheType cache;           // of the decoder's attentions and of what contexts are encoded to; an encoder's own is float32
    int64_t norm;              // the last

    // An encoder-decoder has these too. What is added to a score depends on how far key and query are apart.
    int32_t cross;               // a matrix: the keys and values of all cross-attentions, one behind the other
    int32_t farthest;            // from here on all distances are alike
    int64_t encoder_norm;        // the encoder's last
    int64_t bias, encoder_bias;  // (heads, farthest + 1), by how far back the key is; (heads, 2 · farthest + 1), from far back to far ahead
};

}  // namespace mmedge
