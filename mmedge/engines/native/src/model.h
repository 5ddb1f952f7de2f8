// A plan whose tensors were found in the weights, and the memory of what was read.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "plan.h"

namespace mmedge {

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

template <typename Value>
using Memory = std::unique_ptr<Value[], Freed>;

// Zeros; pages come into being when they are written.
template <typename Value>
Memory<Value> zeros(uint64_t count) {
    return Memory<Value>(static_cast<Value*>(std::calloc(count ? count : 1, sizeof(Value))));
}

struct ModelBlock {
    Sublayer kind;
    int window;
    const Weights* first;
    const Weights* second;
    const Weights* out;
    const float* norm;
    const float* query_norm;
    const float* key_norm;
    const float* after_norm;
    const float* head_norm;
    const float* cosines;
    const float* sines;
    int rotary_width;
    const float* kernel[MOST_TAPS];
    const float* kernel_bias;
    int taps, channels;
    bool gated;
    int key_heads, value_heads, key_width, value_width;
    const float* step_bias;
    const float* slope;
    int64_t state, matrices;  // where they lie among a row's states: a convolution's last inputs, a gated delta layer's matrices
    Activation activation;
    int layer;  // among attentions of its kind, whose keys and values have a place of their own; 0 in an encoder
    bool last;  // in a decoder: behind it no token sees another
};

struct Model {
    Plan plan;
    std::vector<Weights> weights;
    std::vector<ModelBlock> blocks;   // of the decoder
    std::vector<ModelBlock> encoder;  // empty where there is none
    const Weights* table;
    const Weights* head;
    const float* norm;
    const Weights* cross;
    const float* encoder_norm;
    const float* bias;          // null in a decoder-only model
    const float* encoder_bias;
    int layers;     // self-attentions of the decoder, and its cross-attentions where there is an encoder
    int64_t states; // floats of a row's states; 0 where no layer has one
    int widest;     // the most inputs of a linear layer
    int opened;     // the most outputs of what tokens are mixed by, and
    int mixed;      // the most inputs of the linear layer behind that
    int hidden;     // the most outputs of a gate, or channels of what a gated delta layer convolves
    int rates;      // the most outputs of a gated delta layer's rates
    int most_blocks;  // of a row
    std::vector<Memory<uint8_t>> panels;  // that matrices in columns were packed into
};

// Checks a plan against the weights' size, and every count, shape and offset against each other.
// Returns what is wrong; empty where nothing is.
std::string read_model(const Plan& plan, const Matrix* matrices, const Block* blocks, const uint8_t* weights, uint64_t size,
                       Model& model);

// Packs the matrices in columns, as many as `most` bytes have room for.
void pack_columns(Model& model, const Kernels& kernels, int64_t most);

// Keys and values of rows, (row, layer, head, positions / 8) groups of each, as `Kept` has them.
// What a context was encoded to is kept so too, as one row of keys and values for each cross-attention. The states of recurrent
// layers hold all that a row has read, as (row, states); what of it came last cannot be taken back.
struct Cache {
    int rows, capacity;  // capacity is a multiple of 8
    int length = 0;      // of an encoded context
    CacheType type;
    int64_t of_head, of_layer, of_row;  // bytes of keys, and of values
    const Model* of;
    Memory<uint8_t> keys, values;
    Memory<float> states;
    std::vector<int> read;  // how many tokens a row's states hold; -1 where reading them failed

    Kept head(int row, int layer, int head) const {
        const int64_t place = row * of_row + layer * of_layer + head * of_head;
        return {keys.get() + place, values.get() + place, type, of->plan.head_width};
    }
    float* states_of(int row) const { return states.get() + row * of->states; }
};

// A cache of zeros; null where there is no memory for it.
std::unique_ptr<Cache> make_cache(const Model& model, CacheType type, int64_t rows, int64_t capacity, int layers);

}  // namespace mmedge
