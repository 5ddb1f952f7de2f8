// Reading a plan: nothing in it is believed before it was checked.
#include "model.h"

#include <algorithm>
#include <cmath>

namespace mmedge {

namespace {

constexpr int64_t WIDEST = 1 << 16;      // inputs of a linear layer
constexpr int64_t LONGEST = 1 << 22;     // outputs, entries of a vocabulary, positions
constexpr int MOST_BLOCKS = 4096;        // of a row of a matrix: what the kernels have room for
constexpr int64_t MOST_STATES = 1 << 28; // floats of a row's states

class Reader {
public:
    Reader(const uint8_t* weights, uint64_t size) : weights_(weights), size_(size) {}

    std::string wrong;

    void require(bool right, const char* what) {
        if (!right && wrong.empty()) wrong = what;
    }

    const uint8_t* bytes(int64_t offset, int64_t count, int64_t alignment, const char* what) {
        const bool inside = offset >= 0 && count >= 0 && static_cast<uint64_t>(offset) <= size_ &&
                            static_cast<uint64_t>(count) <= size_ - static_cast<uint64_t>(offset) && offset % alignment == 0;
        require(inside, what);
        return inside ? weights_ + offset : nullptr;
    }

    const float* floats(int64_t offset, int64_t count, const char* what) {
        return reinterpret_cast<const float*>(bytes(offset, count * 4, 4, what));
    }

    const float* optional(int64_t offset, int64_t count, const char* what) {
        return offset == ABSENT ? nullptr : floats(offset, count, what);
    }

    Weights matrix(const Matrix& m) {
        Weights found{};
        require(m.outputs >= 1 && m.outputs <= LONGEST && m.inputs >= 1 && m.inputs <= WIDEST, "a matrix has an impossible shape");
        if (!wrong.empty()) return found;
        found.storage = m.storage;
        found.outputs = static_cast<int>(m.outputs);
        found.inputs = static_cast<int>(m.inputs);
        found.bias = optional(m.bias, m.outputs, "a bias lies outside of the weights");
        switch (m.storage) {
            case Storage::float32_rows:
            case Storage::float32_columns: {
                found.block = 64;  // nothing is quantized
                const bool rows = m.storage == Storage::float32_rows;
                found.stride = rows ? m.inputs : m.stride ? m.stride : m.outputs;
                require(rows || (found.stride >= m.outputs && found.stride <= LONGEST), "a matrix has an impossible shape");
                const int64_t count = rows ? m.outputs * m.inputs : (m.inputs - 1) * found.stride + m.outputs;
                found.floats = floats(m.codes, count, "a float32 matrix lies outside of the weights");
                return found;
            }
            case Storage::int8_blocks:
            case Storage::int4_blocks: return blocks(m, found);
            case Storage::int8_columns: return columns(m, found);
        }
        require(false, "a matrix is stored in an unknown way");
        return found;
    }

private:
    Weights columns(const Matrix& m, Weights found) {
        found.storage = Storage::int8_blocks;
        found.block = 64;
        found.blocks = static_cast<int>((m.inputs + 63) / 64);
        require(found.blocks <= MOST_BLOCKS, "a matrix has too many blocks");
        found.columns = reinterpret_cast<const int8_t*>(
            bytes(m.codes, m.outputs * m.inputs, 1, "a matrix's codes lie outside of the weights"));
        found.scales = floats(m.scales, m.outputs, "a matrix's scales lie outside of the weights");
        return found;
    }

    Weights blocks(const Matrix& m, Weights found) {
        require(m.block == 16 || m.block == 32 || m.block == 64, "a matrix has blocks of an unknown size");
        if (!wrong.empty()) return found;
        const int64_t count = (m.inputs + m.block - 1) / m.block;
        require(count <= MOST_BLOCKS, "a matrix has too many blocks");
        found.block = m.block;
        found.blocks = static_cast<int>(count);
        const int64_t of_block = m.storage == Storage::int4_blocks ? m.block / 2 : m.block;
        found.codes = bytes(m.codes, m.outputs * count * of_block, 1, "a matrix's codes lie outside of the weights");
        require(m.scale_type == ScaleType::float16 || m.scale_type == ScaleType::float32, "scales have an unknown type");
        if (m.scale_type == ScaleType::float16)
            found.half_scales = reinterpret_cast<const uint16_t*>(
                bytes(m.scales, m.outputs * count * 2, 2, "a matrix's scales lie outside of the weights"));
        else
            found.scales = floats(m.scales, m.outputs * count, "a matrix's scales lie outside of the weights");
        return found;
    }

    const uint8_t* weights_;
    const uint64_t size_;
};

bool is_count(int64_t value, int64_t most) { return value >= 1 && value <= most; }

// Reads the sublayers of a plan whose own numbers and matrices were checked.
class Sublayers {
public:
    Sublayers(Reader& reader, Model& model)
        : reader_(reader), model_(model), plan_(model.plan), attended_(int64_t{plan_.heads} * plan_.head_width),
          kept_(int64_t{plan_.kv_heads} * plan_.head_width), encodes_(plan_.encoder_blocks > 0) {}

    int crosses = 0;

    const Weights* matrix(int place, int64_t outputs, int64_t inputs) {
        const bool known = place >= 0 && place < plan_.matrix_count;
        reader_.require(known, "the plan names a matrix that is not there");
        if (!known) return nullptr;
        const Weights* found = &model_.weights[place];
        reader_.require(found->inputs == inputs && (outputs == 0 || found->outputs == outputs), "a matrix's shape does not fit the plan");
        return found;
    }

    void add(const Block& block, bool in_encoder) {
        ModelBlock found{};
        found.kind = block.kind;
        found.window = block.window;
        found.activation = block.activation;
        found.norm = reader_.floats(block.norm, plan_.width, "a norm lies outside of the weights");
        found.after_norm = reader_.optional(block.after_norm, plan_.width, "a norm lies outside of the weights");
        switch (block.kind) {
            case Sublayer::self_attention: self_attention(block, in_encoder, found); break;
            case Sublayer::cross_attention: cross_attention(block, in_encoder, found); break;
            case Sublayer::feed_forward: feed_forward(block, found); break;
            case Sublayer::convolution: convolution(block, found); break;
            case Sublayer::gated_delta: gated_delta(block, found); break;
            default: reader_.require(false, "the plan has an unknown kind of sublayer");
        }
        if (!reader_.wrong.empty()) return;
        if (block.kind != Sublayer::feed_forward) {
            model_.opened = std::max(model_.opened, found.first->outputs);
            model_.mixed = std::max(model_.mixed, found.out->inputs);
        }
        model_.widest = std::max(model_.widest, found.out->inputs);
        (in_encoder ? model_.encoder : model_.blocks).push_back(found);
    }

private:
    void self_attention(const Block& block, bool in_encoder, ModelBlock& found) {
        reader_.require(block.window >= 0 && (!encodes_ || block.window == 0), "a window is impossible");
        found.gated = block.gated != 0;
        reader_.require(!found.gated || !encodes_, "an encoder-decoder has no gates");
        found.first = matrix(block.first, (found.gated ? 2 : 1) * attended_ + 2 * kept_, plan_.width);
        found.out = matrix(block.out, plan_.width, attended_);
        found.query_norm = reader_.optional(block.query_norm, plan_.head_width, "a norm lies outside of the weights");
        found.key_norm = reader_.optional(block.key_norm, plan_.head_width, "a norm lies outside of the weights");
        if (!in_encoder) found.layer = model_.layers++;
        found.rotary_width = block.rotary_width;
        if (!block.rotary_width) return;
        const bool fits = block.rotary_width > 0 && block.rotary_width <= plan_.head_width && block.rotary_width % 2 == 0;
        reader_.require(fits && !encodes_, "a rotary embedding does not fit");
        const int64_t angles = static_cast<int64_t>(plan_.positions) * (block.rotary_width / 2);
        found.cosines = reader_.floats(block.cosines, angles, "the rotary embedding lies outside of the weights");
        found.sines = reader_.floats(block.sines, angles, "the rotary embedding lies outside of the weights");
    }

    void cross_attention(const Block& block, bool in_encoder, ModelBlock& found) {
        reader_.require(encodes_ && !in_encoder, "there is no encoder that a cross-attention could attend to");
        reader_.require(model_.layers > 0, "a cross-attention comes before all attention");
        found.first = matrix(block.first, attended_, plan_.width);
        found.out = matrix(block.out, plan_.width, attended_);
        found.layer = crosses++;
    }

    void feed_forward(const Block& block, ModelBlock& found) {
        found.first = matrix(block.first, 0, plan_.width);
        const int64_t hidden = found.first ? found.first->outputs : 0;
        reader_.require(hidden <= WIDEST, "a gate is too wide");
        found.second = block.second == -1 ? nullptr : matrix(block.second, hidden, plan_.width);
        found.out = matrix(block.out, plan_.width, hidden);
        reader_.require(block.activation >= Activation::silu && block.activation <= Activation::gelu, "an activation is unknown");
        model_.hidden = std::max(model_.hidden, static_cast<int>(hidden));
    }

    void convolution(const Block& block, ModelBlock& found) {
        found.first = matrix(block.first, 3 * int64_t{plan_.width}, plan_.width);
        found.out = matrix(block.out, plan_.width, plan_.width);
        convolve(block, plan_.width, found);
    }

    void gated_delta(const Block& block, ModelBlock& found) {
        const bool heads = is_count(block.key_heads, 1024) && is_count(block.value_heads, 1024) && block.value_heads % block.key_heads == 0;
        reader_.require(heads && is_count(block.key_width, 1024) && is_count(block.value_width, 1024), "a gated delta layer does not fit");
        if (!reader_.wrong.empty()) return;
        found.key_heads = block.key_heads, found.value_heads = block.value_heads;
        found.key_width = block.key_width, found.value_width = block.value_width;
        const int64_t keys = found.key_heads * found.key_width, values = found.value_heads * found.value_width;
        reader_.require(2 * keys + values <= WIDEST, "a gated delta layer does not fit");
        found.first = matrix(block.first, 2 * keys + 2 * values, plan_.width);
        found.second = matrix(block.second, 2 * found.value_heads, plan_.width);
        found.out = matrix(block.out, plan_.width, values);
        convolve(block, 2 * keys + values, found);
        found.matrices = state(values * found.key_width);
        found.head_norm = reader_.floats(block.head_norm, found.value_width, "a norm lies outside of the weights");
        found.step_bias = reader_.floats(block.step_bias, found.value_heads, "a decay lies outside of the weights");
        found.slope = reader_.floats(block.slope, found.value_heads, "a decay lies outside of the weights");
        model_.hidden = std::max(model_.hidden, found.channels);
        model_.rates = std::max(model_.rates, 2 * found.value_heads);
    }

    // A convolution over time, and the state that holds its last inputs. Channels are computed by whole sixteens.
    void convolve(const Block& block, int64_t channels, ModelBlock& found) {
        reader_.require(!encodes_, "an encoder-decoder has no states");
        reader_.require(is_count(block.taps, MOST_TAPS) && channels % GROUP == 0, "a convolution does not fit");
        if (!reader_.wrong.empty()) return;
        found.taps = block.taps;
        found.channels = static_cast<int>(channels);
        for (int tap = 0; tap < block.taps; ++tap)
            found.kernel[tap] = reader_.floats(block.kernel[tap], channels, "a convolution lies outside of the weights");
        found.kernel_bias = reader_.optional(block.kernel_bias, channels, "a convolution lies outside of the weights");
        found.state = state((block.taps - 1) * channels);
    }

    // Adds so many floats to a row's states, and returns where they begin.
    int64_t state(int64_t count) {
        const int64_t place = model_.states;
        model_.states += count;
        reader_.require(model_.states <= MOST_STATES, "the states are too large");
        return place;
    }

    Reader& reader_;
    Model& model_;
    const Plan& plan_;
    const int64_t attended_, kept_;  // widths of all heads' queries, and of all their keys
    const bool encodes_;
};

// Checks the numbers that everything else is measured by.
void check_shape(const Plan& plan, Reader& reader) {
    reader.require(plan.version == PLAN_VERSION, "the plan is of another version");
    reader.require(is_count(plan.width, WIDEST) && is_count(plan.heads, 1024) && is_count(plan.kv_heads, plan.heads) &&
                       is_count(plan.head_width, 1024) && is_count(plan.vocabulary, LONGEST) && is_count(plan.positions, LONGEST),
                   "the plan has an impossible shape");
    reader.require(is_count(plan.matrix_count, 1 << 16) && is_count(plan.block_count, 1 << 14), "the plan is empty, or too long");
    if (!reader.wrong.empty()) return;
    reader.require(plan.heads % plan.kv_heads == 0 && plan.head_width % 16 == 0, "the plan's heads do not fit");
    const bool numbers = std::isfinite(plan.epsilon) && std::isfinite(plan.attention_scale) && std::isfinite(plan.embedding_multiplier);
    reader.require(numbers, "the plan's factors are not numbers");
    reader.require(plan.cache >= CacheType::float32 && plan.cache <= CacheType::int8, "the cache has an unknown type");
}

}  // namespace

std::string read_model(const Plan& plan, const Matrix* matrices, const Block* blocks, const uint8_t* weights, uint64_t size,
                       Model& model) {
    Reader reader(weights, size);
    check_shape(plan, reader);
    model = Model{};
    model.plan = plan;
    if (!reader.wrong.empty()) return reader.wrong;
    for (int place = 0; place < plan.matrix_count; ++place) {
        model.weights.push_back(reader.matrix(matrices[place]));
        if (!reader.wrong.empty()) return "matrices." + std::to_string(place) + ": " + reader.wrong;
    }

    Sublayers sublayers(reader, model);
    model.widest = plan.width;
    reader.require(plan.encoder_blocks >= 0 && plan.encoder_blocks < plan.block_count, "the plan has no decoder");
    if (!reader.wrong.empty()) return reader.wrong;
    for (int place = 0; place < plan.block_count; ++place) {
        const bool in_encoder = place < plan.encoder_blocks;
        sublayers.add(blocks[place], in_encoder);
        const int own = in_encoder ? place : place - plan.encoder_blocks;
        if (!reader.wrong.empty()) return (in_encoder ? "encoder.blocks." : "blocks.") + std::to_string(own) + ": " + reader.wrong;
    }
    const auto last = std::find_if(model.blocks.rbegin(), model.blocks.rend(), [](const ModelBlock& block) {
        return block.kind != Sublayer::feed_forward && block.kind != Sublayer::cross_attention;
    });
    if (last != model.blocks.rend()) last->last = true;
    model.table = sublayers.matrix(plan.table, plan.vocabulary, plan.width);
    model.head = sublayers.matrix(plan.head, plan.vocabulary, plan.width);
    const bool rows = model.table && !model.table->columns && model.table->storage != Storage::float32_columns;
    reader.require(rows, "a table cannot be stored in columns");
    model.norm = reader.floats(plan.norm, plan.width, "a norm lies outside of the weights");
    reader.require(model.layers > 0, "the plan has no attention");
    if (plan.encoder_blocks > 0) {
        const int crosses = sublayers.crosses;
        reader.require(plan.heads == plan.kv_heads && crosses == model.layers, "not every attention has a cross-attention");
        reader.require(is_count(plan.farthest, 1 << 16), "the plan has an impossible shape");
        model.cross = sublayers.matrix(plan.cross, int64_t{2} * crosses * plan.heads * plan.head_width, plan.width);
        model.encoder_norm = reader.floats(plan.encoder_norm, plan.width, "a norm lies outside of the weights");
        const int64_t far = plan.farthest, heads = plan.heads;
        model.bias = reader.floats(plan.bias, heads * (far + 1), "a bias lies outside of the weights");
        model.encoder_bias = reader.floats(plan.encoder_bias, heads * (2 * far + 1), "a bias lies outside of the weights");
    }
    model.most_blocks = (model.widest + 15) / 16;
    return reader.wrong;
}

void pack_columns(Model& model, const Kernels& kernels, int64_t most) {
    for (Weights& weights : model.weights) {
        if (!kernels.pack || !weights.columns || panel_bytes(weights) > most) continue;
        auto panels = zeros<uint8_t>(static_cast<uint64_t>(panel_bytes(weights)));
        if (!panels || !kernels.pack(weights, panels.get())) continue;
        most -= panel_bytes(weights);
        weights.panels = panels.get();
        model.panels.push_back(std::move(panels));
    }
}

std::unique_ptr<Cache> make_cache(const Model& model, CacheType type, int64_t rows, int64_t capacity, int layers) {
    auto found = std::make_unique<Cache>();
    found->of = &model;
    found->type = type;
    found->rows = static_cast<int>(rows);
    found->capacity = static_cast<int>((capacity + 7) / 8 * 8);
    found->of_head = found->capacity / 8 * group_bytes(type, model.plan.head_width);
    found->of_layer = found->of_head * model.plan.kv_heads;
    const double of_row = 2.0 * static_cast<double>(found->of_layer) * layers + 4.0 * static_cast<double>(model.states);
    if (of_row * static_cast<double>(rows) > 1e15) return nullptr;
    found->of_row = found->of_layer * layers;
    found->keys = zeros<uint8_t>(static_cast<uint64_t>(found->of_row) * static_cast<uint64_t>(rows));
    found->values = zeros<uint8_t>(static_cast<uint64_t>(found->of_row) * static_cast<uint64_t>(rows));
    found->states = zeros<float>(static_cast<uint64_t>(model.states) * static_cast<uint64_t>(rows));
    found->read.assign(static_cast<size_t>(rows), 0);
    return found->keys && found->values && found->states ? std::move(found) : nullptr;
}

}  // namespace mmedge
