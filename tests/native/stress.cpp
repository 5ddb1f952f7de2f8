// The native engine under a sanitizer: random small models compute the same bits on every instruction set and number of threads,
// alone and together; plans that lie are refused, or compute within their weights, which lie in memory of exactly their size. Caches
// round as they say, alike everywhere.
//
//     make test-native
//     make test-arm
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "abi.h"

using namespace mmedge;

namespace {

using Random = std::mt19937;
constexpr int ROOM = 200;

int between(Random& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }

// A plan and its weights.
struct Made {
    Plan plan{};
    std::vector<Matrix> matrices;
    std::vector<Block> blocks;
    std::vector<uint8_t> weights;

    int64_t add(const void* data, size_t bytes, size_t alignment) {
        weights.resize((weights.size() + alignment - 1) / alignment * alignment);
        const int64_t offset = static_cast<int64_t>(weights.size());
        weights.insert(weights.end(), static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + bytes);
        return offset;
    }

    int64_t floats(Random& random, int64_t count, float middle, float spread) {
        std::normal_distribution<float> normal(middle, spread);
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) value = normal(random);
        return add(values.data(), values.size() * 4, 4);
    }

    int matrix(Random& random, int outputs, int inputs, bool table) {
        Matrix m{};
        m.storage = static_cast<Storage>(between(random, 1, 5));
        if (table && (m.storage == Storage::float32_columns || m.storage == Storage::int8_columns)) m.storage = Storage::float32_rows;
        m.outputs = outputs, m.inputs = inputs;
        m.bias = between(random, 0, 2) ? ABSENT : floats(random, outputs, 0, 0.1f);
        m.scales = ABSENT;
        if (m.storage == Storage::float32_rows || m.storage == Storage::float32_columns) {
            const int beside = m.storage == Storage::float32_columns && between(random, 0, 1) ? between(random, 1, 20) : 0;
            m.stride = beside ? outputs + beside : 0;
            m.codes = floats(random, static_cast<int64_t>(outputs + beside) * inputs - beside, 0, 0.1f);
        } else if (m.storage == Storage::int8_columns) {
            std::vector<uint8_t> codes(static_cast<size_t>(outputs) * static_cast<size_t>(inputs));
            const int most = between(random, 0, 2) ? 63 : 127;  // codes of 7 bits are packed on every processor
            for (uint8_t& code : codes) code = static_cast<uint8_t>(between(random, -most - 1, most));
            m.codes = add(codes.data(), codes.size(), 1);
            m.scales = floats(random, outputs, 0.002f, 0.0005f);
        } else {
            m.block = 16 << between(random, 0, 2);
            const int64_t blocks = (inputs + m.block - 1) / m.block * static_cast<int64_t>(outputs);
            std::vector<uint8_t> codes(static_cast<size_t>(blocks * (m.storage == Storage::int4_blocks ? m.block / 2 : m.block)));
            for (uint8_t& code : codes) code = static_cast<uint8_t>(between(random, 0, 255));
            m.codes = add(codes.data(), codes.size(), 1);
            m.scale_type = static_cast<ScaleType>(between(random, 1, 2));
            if (m.scale_type == ScaleType::float32) m.scales = floats(random, blocks, 0.002f, 0.0005f);
            else {
                std::vector<uint16_t> halves(static_cast<size_t>(blocks));
                for (uint16_t& half : halves) half = static_cast<uint16_t>(0x1800 + between(random, 0, 0x400));  // about 0.002
                m.scales = add(halves.data(), halves.size() * 2, 2);
            }
        }
        matrices.push_back(m);
        return static_cast<int>(matrices.size()) - 1;
    }
};

Block attention(Made& made, Random& random, bool cross, bool norms) {
    const Plan& p = made.plan;
    const int inner = p.heads * p.head_width;
    Block found{};
    found.kind = cross ? Sublayer::cross_attention : Sublayer::self_attention;
    found.gated = norms && !p.encoder_blocks && !between(random, 0, 2);
    found.first = made.matrix(random, cross ? inner : (found.gated ? 2 : 1) * inner + 2 * p.kv_heads * p.head_width, p.width, false);
    found.second = -1;
    found.out = made.matrix(random, p.width, inner, false);
    found.norm = made.floats(random, p.width, 1, 0.1f);
    found.after_norm = between(random, 0, 2) ? ABSENT : made.floats(random, p.width, 1, 0.1f);
    found.cosines = found.sines = ABSENT;
    found.query_norm = !norms || between(random, 0, 1) ? ABSENT : made.floats(random, p.head_width, 1, 0.1f);
    found.key_norm = !norms || between(random, 0, 1) ? ABSENT : made.floats(random, p.head_width, 1, 0.1f);
    return found;
}

Block convolution(Made& made, Random& random) {
    const Plan& p = made.plan;
    Block found{};
    found.kind = Sublayer::convolution;
    found.first = made.matrix(random, 3 * p.width, p.width, false);
    found.second = -1;
    found.out = made.matrix(random, p.width, p.width, false);
    found.norm = made.floats(random, p.width, 1, 0.1f);
    found.after_norm = between(random, 0, 2) ? ABSENT : made.floats(random, p.width, 1, 0.1f);
    found.query_norm = found.key_norm = found.cosines = found.sines = ABSENT;
    found.taps = between(random, 1, 5);
    for (int tap = 0; tap < found.taps; ++tap) found.kernel[tap] = made.floats(random, p.width, 0, 0.5f);
    found.kernel_bias = between(random, 0, 1) ? ABSENT : made.floats(random, p.width, 0, 0.1f);
    return found;
}

Block gated_delta(Made& made, Random& random) {
    const Plan& p = made.plan;
    Block found = convolution(made, random);
    found.kind = Sublayer::gated_delta;
    found.key_heads = between(random, 1, 3), found.value_heads = found.key_heads * between(random, 1, 2);
    do found.key_width = between(random, 1, 40), found.value_width = between(random, 1, 70);
    while ((2 * found.key_heads * found.key_width + found.value_heads * found.value_width) % 16);
    const int inner = found.value_heads * found.value_width, channels = 2 * found.key_heads * found.key_width + inner;
    found.first = made.matrix(random, channels + inner, p.width, false);
    found.second = made.matrix(random, 2 * found.value_heads, p.width, false);
    found.out = made.matrix(random, p.width, inner, false);
    for (int tap = 0; tap < found.taps; ++tap) found.kernel[tap] = made.floats(random, channels, 0, 0.5f);
    found.kernel_bias = ABSENT;
    found.head_norm = made.floats(random, found.value_width, 1, 0.1f);
    found.step_bias = made.floats(random, found.value_heads, 0, 3);
    found.slope = made.floats(random, found.value_heads, -1, 0.5f);
    return found;
}

Block feed_forward(Made& made, Random& random) {
    const Plan& p = made.plan;
    Block found{};
    found.kind = Sublayer::feed_forward;
    const int hidden = between(random, 0, 7) ? between(random, 1, 200) : between(random, 900, 2200);  // more than a panel
    found.first = made.matrix(random, hidden, p.width, false);
    found.second = between(random, 0, 2) ? made.matrix(random, hidden, p.width, false) : -1;
    found.out = made.matrix(random, p.width, hidden, false);
    found.activation = static_cast<Activation>(between(random, 0, 2));
    found.norm = made.floats(random, p.width, 1, 0.1f);
    found.after_norm = between(random, 0, 2) ? ABSENT : made.floats(random, p.width, 1, 0.1f);
    found.query_norm = found.key_norm = found.cosines = found.sines = ABSENT;
    return found;
}

Made make(Random& random) {
    Made made;
    Plan& p = made.plan;
    const bool encodes = between(random, 0, 1), recurrent = !encodes && between(random, 0, 1);
    p.version = PLAN_VERSION;
    p.cache = static_cast<CacheType>(between(random, 0, 2));
    p.width = between(random, 1, 9) * 16 + (recurrent || between(random, 0, 3) ? 0 : between(random, 1, 15));
    p.kv_heads = between(random, 1, 3);
    p.heads = encodes ? p.kv_heads : p.kv_heads * between(random, 1, 4);
    p.head_width = 16 * between(random, 1, 4);
    p.vocabulary = between(random, 1, 90);
    p.positions = between(random, 30, 60);
    p.epsilon = 1e-5f, p.attention_scale = 0.2f, p.embedding_multiplier = between(random, 0, 1) ? 1.0f : 3.0f;
    p.table = made.matrix(random, p.vocabulary, p.width, true);
    p.head = between(random, 0, 1) ? p.table : made.matrix(random, p.vocabulary, p.width, false);
    const int layers = between(random, 1, 3);
    if (encodes) {
        for (int layer = between(random, 1, 2); layer > 0; --layer) {
            made.blocks.push_back(attention(made, random, false, false));
            made.blocks.push_back(feed_forward(made, random));
        }
        p.encoder_blocks = static_cast<int>(made.blocks.size());
    }
    for (int layer = 0; layer < layers; ++layer) {
        made.blocks.push_back(attention(made, random, false, true));
        Block& block = made.blocks.back();
        if (!encodes && !between(random, 0, 1)) block.window = between(random, 1, 20);
        if (!encodes && between(random, 0, 3)) {
            block.rotary_width = between(random, 0, 1) ? p.head_width : 2 * between(random, 1, p.head_width / 2);
            for (int64_t* turns : {&block.cosines, &block.sines})
                *turns = made.floats(random, static_cast<int64_t>(p.positions) * block.rotary_width / 2, 0, 0.7f);
        }
        if (encodes) made.blocks.push_back(attention(made, random, true, false));
        made.blocks.push_back(feed_forward(made, random));
        for (int more = recurrent ? between(random, 0, 2) : 0; more > 0; --more) {
            const Block block = between(random, 0, 1) ? convolution(made, random) : gated_delta(made, random);
            made.blocks.insert(made.blocks.end() - (between(random, 0, 1) ? 2 : 0), block);
            if (between(random, 0, 1)) made.blocks.push_back(feed_forward(made, random));
        }
    }
    p.norm = made.floats(random, p.width, 1, 0.1f);
    p.encoder_norm = p.bias = p.encoder_bias = ABSENT;
    if (encodes) {
        p.cross = made.matrix(random, 2 * layers * p.heads * p.head_width, p.width, false);
        p.farthest = between(random, 1, 40);
        p.encoder_norm = made.floats(random, p.width, 1, 0.1f);
        p.bias = made.floats(random, static_cast<int64_t>(p.heads) * (p.farthest + 1), 0, 1);
        p.encoder_bias = made.floats(random, static_cast<int64_t>(p.heads) * (2 * p.farthest + 1), 0, 1);
    }
    p.matrix_count = static_cast<int>(made.matrices.size());
    p.block_count = static_cast<int>(made.blocks.size());
    return made;
}

// An opened model on weights of exactly their size; null where the plan is refused.
struct Opened {
    std::unique_ptr<uint8_t[]> weights;
    Engine* engine = nullptr;

    Opened(const Made& made, int threads, const char* kernels, int callers = 1) : weights(new uint8_t[made.weights.size()]) {
        std::memcpy(weights.get(), made.weights.data(), made.weights.size());
        char message[ROOM];
        mmedge_open(&made.plan, made.matrices.data(), made.blocks.data(), weights.get(), made.weights.size(), threads, callers, kernels,
                    &engine, message, ROOM);
    }
    ~Opened() {
        if (engine) mmedge_close(engine);
    }
};

// What contexts are encoded to: where there is an encoder, each row's is the row from behind.
struct Contexts {
    std::vector<Cache*> found;
    bool fine = true;

    Contexts(Engine* engine, const std::vector<std::vector<int64_t>>& rows) {
        if (engine->model().encoder.empty()) return;
        std::vector<int64_t> ids, counts;
        for (const auto& row : rows) {
            ids.insert(ids.end(), row.rbegin(), row.rend());
            counts.push_back(static_cast<int64_t>(row.size()));
        }
        found.resize(rows.size(), nullptr);
        char message[ROOM];
        fine = !mmedge_encode(engine, ids.data(), counts.data(), static_cast<int64_t>(rows.size()), found.data(), message, ROOM);
    }
    ~Contexts() {
        for (Cache* cache : found) mmedge_cache_close(cache);
    }
};

// The logits behind every token of some rows that are read together, `step` tokens of each at a time.
std::vector<std::vector<float>> read(Engine* engine, const std::vector<std::vector<int64_t>>& rows, int step) {
    const int64_t count = static_cast<int64_t>(rows.size()), vocabulary = engine->model().plan.vocabulary;
    Cache* cache = nullptr;
    char message[ROOM];
    const Contexts contexts(engine, rows);
    if (!contexts.fine || mmedge_cache(engine, count, 40, &cache, message, ROOM)) return {};
    std::vector<std::vector<float>> found(rows.size());
    std::vector<int64_t> starts(rows.size(), 0);
    for (bool more = true; more;) {
        std::vector<int64_t> ids, counts, wanted;
        for (size_t row = 0; row < rows.size(); ++row) {
            const int64_t left = static_cast<int64_t>(rows[row].size()) - starts[row];
            counts.push_back(left < step ? left : step);
            for (int64_t place = 0; place < counts.back(); ++place) {
                wanted.push_back(static_cast<int64_t>(ids.size()));
                ids.push_back(rows[row][static_cast<size_t>(starts[row] + place)]);
            }
        }
        std::vector<float> logits(ids.size() * static_cast<size_t>(vocabulary));
        if (mmedge_read(engine, cache, ids.data(), counts.data(), starts.data(), contexts.found.data(), wanted.data(),
                        static_cast<int64_t>(wanted.size()), logits.data(), message, ROOM))
            break;
        more = false;
        size_t place = 0;
        for (size_t row = 0; row < rows.size(); ++row)
            for (int64_t token = 0; token < counts[row]; ++token, ++place, ++starts[row], more = true)
                found[row].insert(found[row].end(), logits.begin() + static_cast<int64_t>(place) * vocabulary,
                                  logits.begin() + static_cast<int64_t>(place + 1) * vocabulary);
    }
    mmedge_cache_close(cache);
    return found;
}

std::vector<std::vector<int64_t>> texts(Random& random, int vocabulary) {
    std::vector<std::vector<int64_t>> rows(static_cast<size_t>(between(random, 1, 6)));
    for (auto& row : rows) {
        row.resize(static_cast<size_t>(between(random, 1, 25)));
        for (int64_t& token : row) token = between(random, 0, vocabulary - 1);
    }
    return rows;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

bool agree(Random& random) {
    const Made made = make(random);
    const auto rows = texts(random, made.plan.vocabulary);
    Opened first(made, 1, "portable");
    if (!first.engine) return std::puts("a plan was refused"), false;
    const auto right = read(first.engine, rows, 1000);
    for (const char* kernels : {"portable", "avx2", "emulated", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm"}) {
        if (!mmedge_kernels(kernels)) continue;
        for (int threads : {1, 3}) {
            Opened other(made, threads, kernels);
            const auto together = read(other.engine, rows, between(random, 1, 9));
            for (size_t row = 0; row < rows.size(); ++row) {
                const auto alone = read(other.engine, {rows[row]}, between(random, 1, 9));
                if (!same(right[row], together[row]) || !same(right[row], alone[0])) {
                    std::printf("%s, %d threads: row %zu differs\n", kernels, threads, row);
                    return false;
                }
            }
        }
    }
    return true;
}

// What one row of a cache has read goes on in another row, of the same cache and of a larger one; impossible copies are refused.
bool copy(Random& random) {
    const Made made = make(random);
    const int64_t vocabulary = made.plan.vocabulary;
    std::vector<int64_t> text;
    for (int count = between(random, 2, 25); count > 0; --count) text.push_back(between(random, 0, made.plan.vocabulary - 1));
    Opened opened(made, 2, "");
    const auto whole = read(opened.engine, {text}, 1000).front();
    const int64_t total = static_cast<int64_t>(text.size()), begun = between(random, 1, static_cast<int>(total) - 1);
    Cache *cache = nullptr, *larger = nullptr;
    char message[ROOM];
    if (mmedge_cache(opened.engine, 3, 32, &cache, message, ROOM) || mmedge_cache(opened.engine, 4, 48, &larger, message, ROOM))
        return std::puts("there is no cache"), false;
    if (2 * cache->of_row != 32 * mmedge_position_bytes(opened.engine)) return std::puts("a cache has another size than it says"), false;
    const std::vector<std::vector<int64_t>> same_for_all(4, text);
    const Contexts contexts(opened.engine, same_for_all);
    bool fine = contexts.fine;
    auto go_on = [&](Cache* where, int row, int64_t first, int64_t end) {
        std::vector<int64_t> counts(4, 0), starts(4, 0), wanted;
        counts[static_cast<size_t>(row)] = end - first, starts[static_cast<size_t>(row)] = first;
        for (int64_t place = 0; place < end - first; ++place) wanted.push_back(place);
        std::vector<float> logits(static_cast<size_t>((end - first) * vocabulary));
        fine = fine && !mmedge_read(opened.engine, where, text.data() + first, counts.data(), starts.data(), contexts.found.data(),
                                    wanted.data(), end - first, logits.data(), message, ROOM);
        fine = fine && !std::memcmp(logits.data(), whole.data() + first * vocabulary, logits.size() * sizeof(float));
    };
    const int64_t zero = 0, one = 1, two = 2, three = 3, far = 33;
    go_on(cache, 0, 0, begun);
    fine = fine && !mmedge_state_copy(opened.engine, cache, &zero, 1, larger, &one, message, ROOM);
    go_on(cache, 0, begun, total);
    fine = fine && !mmedge_state_copy(opened.engine, larger, &one, 1, cache, &zero, message, ROOM);
    fine = fine && mmedge_state_copy(opened.engine, larger, &one, 1, cache, &three, message, ROOM);
    fine = fine && !mmedge_cache_copy(opened.engine, cache, &zero, &begun, 1, cache, &two, message, ROOM);
    fine = fine && !mmedge_cache_copy(opened.engine, cache, &zero, &begun, 1, larger, &three, message, ROOM);
    fine = fine && !mmedge_cache_copy(opened.engine, cache, &zero, &begun, 1, cache, &zero, message, ROOM);
    go_on(cache, 2, begun, total);
    go_on(larger, 3, begun, total);
    go_on(cache, 0, begun, total);
    if (mmedge_state_bytes(opened.engine)) {  // nothing can be taken back but all
        const int64_t counts[4] = {1}, starts[4] = {begun - 1 ? begun - 1 : begun};
        float unused[90];
        fine = fine && total > begun && mmedge_read(opened.engine, cache, text.data(), counts, starts, nullptr, &zero, 1, unused, message, ROOM);
        fine = fine && mmedge_cache_copy(opened.engine, cache, &zero, &begun, 1, larger, &zero, message, ROOM);
        go_on(cache, 0, 0, begun);
    }
    fine = fine && mmedge_cache_copy(opened.engine, cache, &three, &begun, 1, larger, &zero, message, ROOM);
    fine = fine && mmedge_cache_copy(opened.engine, cache, &zero, &begun, 1, cache, &three, message, ROOM);
    fine = fine && mmedge_cache_copy(opened.engine, cache, &zero, &far, 1, larger, &zero, message, ROOM);
    mmedge_cache_close(cache);
    mmedge_cache_close(larger);
    return fine || (std::puts("a copied row goes on differently"), false);
}

std::vector<const Kernels*> all_kernels() {
    std::vector<const Kernels*> found = {&portable_kernels()};
#if defined(__x86_64__)
    if (mmedge_kernels("avx2")) found.push_back(&avx2_kernels());
#elif defined(__aarch64__)
    found.push_back(&neon_kernels());
#endif
    return found;
}

// A key and a value of sixteen numbers, kept as a type has them; other positions are zeros.
struct KeptSixteen {
    alignas(32) uint8_t keys[8 * 16 * 4] = {}, values[8 * 16 * 4] = {};

    KeptSixteen(const Kernels& kernels, const float* numbers, CacheType type, int position) {
        kernels.keep(numbers, numbers, {keys, values, type, 16}, position);
    }
    uint16_t half(const uint8_t* from, int place) const {
        uint16_t found;
        std::memcpy(&found, from + 2 * place, 2);
        return found;
    }
};

float value_of(int half) {  // of a positive one
    return half < 0x400 ? std::ldexp(static_cast<float>(half), -24) : std::ldexp(static_cast<float>(0x400 + half % 0x400), half / 0x400 - 25);
}

// Every half stays what it is, and what lies between two goes to the nearer one, or to the even one; nothing becomes infinite.
bool round_to_halves() {
    const float infinity = std::numeric_limits<float>::infinity();
    std::vector<std::pair<float, int>> cases = {{65519, 0x7BFF}, {65520, 0x7BFF}, {3e38f, 0x7BFF}, {infinity, 0x7BFF}, {1e-40f, 0}};
    for (int half = 0; half <= 0x7BFF; ++half) {
        cases.push_back({value_of(half), half});
        if (half == 0x7BFF) break;
        const float middle = 0.5f * (value_of(half) + value_of(half + 1));
        cases.push_back({middle, half + half % 2});
        cases.push_back({std::nextafter(middle, 0.0f), half});
        cases.push_back({std::nextafter(middle, infinity), half + 1});
    }
    for (size_t place = 0, count = cases.size(); place < count; ++place) cases.push_back({-cases[place].first, 0x8000 | cases[place].second});
    while (cases.size() % 16) cases.push_back({std::numeric_limits<float>::quiet_NaN(), 0x7E00});
    for (const Kernels* kernels : all_kernels())
        for (size_t first = 0; first < cases.size(); first += 16) {
            float numbers[16];
            for (size_t place = 0; place < 16; ++place) numbers[place] = cases[first + place].first;
            const int position = static_cast<int>(first / 16 % 8);
            const KeptSixteen kept(*kernels, numbers, CacheType::float16, position);
            for (int place = 0; place < 16; ++place) {
                const int right = cases[first + static_cast<size_t>(place)].second;
                if (kept.half(kept.keys, 8 * place + position) != right || kept.half(kept.values, 16 * position + place) != right)
                    return std::printf("%s: %a is rounded wrongly\n", kernels->name, static_cast<double>(numbers[place])), false;
            }
        }
    return true;
}

// Whatever numbers there are, all instruction sets keep the same bytes, and int8 is within half a step.
bool keep_alike(Random& random) {
    const float odd[] = {0.0f, -0.0f, 1e-42f, 1e-36f, 7e4f, 3e38f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
    std::normal_distribution<float> normal(0, 3);
    float numbers[16], largest = 0;
    const bool plain = between(random, 0, 1);
    for (float& number : numbers) {
        number = plain || between(random, 0, 2) ? normal(random) : odd[between(random, 0, 7)];
        largest = std::fmax(largest, std::fabs(number));
    }
    const int position = between(random, 0, 7);
    for (CacheType type : {CacheType::float32, CacheType::float16, CacheType::int8}) {
        const KeptSixteen right(portable_kernels(), numbers, type, position);
        for (const Kernels* kernels : all_kernels()) {
            const KeptSixteen other(*kernels, numbers, type, position);
            if (std::memcmp(right.keys, other.keys, sizeof right.keys) || std::memcmp(right.values, other.values, sizeof right.values))
                return std::printf("%s keeps other bytes\n", kernels->name), false;
        }
        if (type != CacheType::int8 || !plain) continue;
        float scale;
        std::memcpy(&scale, right.values + 4 * position, 4);
        for (int place = 0; place < 16; ++place) {
            const float found = scale * static_cast<float>(static_cast<int8_t>(right.values[32 + 16 * position + place]));
            if (right.keys[32 + 8 * place + position] != right.values[32 + 16 * position + place] || std::fabs(found - numbers[place]) > 0.501f * largest / 127)
                return std::puts("int8 is rounded wrongly"), false;
        }
    }
    return true;
}

// Two callers at once, each with a cache of its own, in turns or each in a workspace.
bool share(Random& random) {
    const Made made = make(random);
    const auto one = texts(random, made.plan.vocabulary), other = texts(random, made.plan.vocabulary);
    Opened opened(made, 2, "", between(random, 1, 2));
    const auto right = read(opened.engine, one, 5), also = read(opened.engine, other, 3);
    std::vector<std::vector<float>> found;
    std::thread beside([&] { found = read(opened.engine, one, 2); });
    const auto meanwhile = read(opened.engine, other, 4);
    beside.join();
    for (size_t row = 0; row < one.size(); ++row)
        if (!same(right[row], found[row])) return std::puts("callers disturb each other"), false;
    for (size_t row = 0; row < other.size(); ++row)
        if (!same(also[row], meanwhile[row])) return std::puts("callers disturb each other"), false;
    return true;
}

template <typename Value>
void spoil_bytes(Random& random, Value& value) {
    static_assert(sizeof(Value) % 4 == 0);
    int32_t words[sizeof(Value) / 4];
    std::memcpy(words, &value, sizeof value);
    int32_t& word = words[between(random, 0, static_cast<int>(sizeof(Value) / 4) - 1)];
    switch (between(random, 0, 4)) {
        case 0: word = between(random, -2, 3); break;
        case 1: word = static_cast<int32_t>(random()); break;
        case 2: word += between(random, -40, 40); break;
        case 3: word = between(random, 0, 5000); break;
        case 4: word = static_cast<int32_t>(static_cast<uint32_t>(word) << between(random, 1, 8)); break;
    }
    std::memcpy(&value, words, sizeof value);
}

// Whether the plan was accepted.
bool lie(Random& random) {
    Made made = make(random);
    const int count = made.plan.matrix_count, blocks = made.plan.block_count;
    for (int lies = between(random, 1, 3); lies; --lies) {
        const int what = between(random, 0, 3);
        if (what == 0) spoil_bytes(random, made.plan);
        if (what == 1) spoil_bytes(random, made.matrices[static_cast<size_t>(between(random, 0, count - 1))]);
        if (what == 2) spoil_bytes(random, made.blocks[static_cast<size_t>(between(random, 0, blocks - 1))]);
        if (what == 3) made.weights[random() % made.weights.size()] = static_cast<uint8_t>(random());
    }
    if (made.plan.matrix_count > count || made.plan.block_count > blocks) return false;  // Python passes lists of their own length
    Opened opened(made, 2, "");
    if (!opened.engine) return false;
    std::vector<std::vector<int64_t>> rows = texts(random, made.plan.vocabulary < 90 ? made.plan.vocabulary : 90);
    if (!between(random, 0, 3)) rows[0][0] = static_cast<int64_t>(random()) - 1;
    read(opened.engine, rows, between(random, 1, 30));
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 200, lies = count > 2 ? std::atoi(arguments[2]) : 2000;
    Random random(1);
    if (!round_to_halves()) return 1;
    for (int round = 0; round < 1000; ++round)
        if (!keep_alike(random)) return 1;
    for (int round = 0; round < rounds; ++round)
        if (!agree(random) || !copy(random) || !share(random)) return std::printf("round %d\n", round), 1;
    int accepted = 0;
    for (int round = 0; round < lies; ++round) accepted += lie(random);
    std::printf("%d models agree; of %d lying plans %d were harmless\n", rounds, lies, accepted);
}
