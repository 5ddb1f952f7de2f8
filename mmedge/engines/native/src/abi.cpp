// The C interface that Python calls (`library.py`). Functions return 0, or 1 with a line that says what is wrong.
#include <climits>
#include <cstdio>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "step.h"

#if defined(_WIN32)
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C" __attribute__((visibility("default")))
#endif

using namespace mmedge;

namespace {

constexpr int ABI = 8;
constexpr int64_t MOST_ROWS = 1 << 16;
constexpr int64_t MOST_PANELS = 48'000'000;  // bytes beside the file

int refuse(char* message, int room, const std::string& what) {
    if (room > 0) std::snprintf(message, static_cast<size_t>(room), "%s", what.c_str());
    return 1;
}

template <typename Work>
int guarded(char* message, int room, Work work) {
    try {
        const std::string wrong = work();
        return wrong.empty() ? 0 : refuse(message, room, wrong);
    } catch (const std::bad_alloc&) {
        return refuse(message, room, "out of memory");
    } catch (const std::exception& error) {
        return refuse(message, room, error.what());
    }
}

struct Choice {
    bool usable;
    const Kernels& (*kernels)();
};

#if defined(__x86_64__)
// The processor's bits that the compilers' own question does not know everywhere: leaf 7, subleaf 1.
bool has_avxvnni() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined(__aarch64__) && defined(__linux__)
// The kernel's bits, by their numbers: older headers have no names for them.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(const char* feature) {
    int32_t found = 0;
    size_t size = sizeof found;
    return !sysctlbyname(feature, &found, &size, nullptr, 0) && found;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__aarch64__)
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

// The kernels of a name, or the first that can be used where it is empty; null where there are none.
const Kernels* kernels_named(const char* name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
    const Choice choices[] = {
#if defined(__x86_64__)
        {avx512, avx512vnni_kernels},
        {avx2 && has_avxvnni(), avxvnni_kernels},
        {avx2, avx2_kernels},
#if defined(MMEDGE_EMULATED)
        {avx2, emulated_vnni_kernels},
#endif
#elif defined(__aarch64__)
        {has_dotprod() && has_i8mm(), i8mm_kernels},
        {has_dotprod(), dotprod_kernels},
        {true, neon_kernels},
#endif
        {true, portable_kernels},
    };
    for (const Choice& choice : choices)
        if (choice.usable && (!name || !*name || !std::strcmp(name, choice.kernels().name))) return &choice.kernels();
    return nullptr;
}

void copy_states(const Cache& from, int row, Cache& to, int target) {
    std::memcpy(to.states_of(target), from.states_of(row), static_cast<size_t>(from.of->states) * sizeof(float));
    to.read[static_cast<size_t>(target)] = from.read[static_cast<size_t>(row)];
}

void forget_states(Cache& cache, int row) {
    int& read = cache.read[static_cast<size_t>(row)];
    if (read) std::memset(cache.states_of(row), 0, static_cast<size_t>(cache.of->states) * sizeof(float));
    read = 0;
}

// Until a row has been read, its states are good for nothing but to be forgotten.
void begin_reading(Cache& cache, int row, int64_t start) {
    if (!start) forget_states(cache, row);
    cache.read[static_cast<size_t>(row)] = -1;
}

}  // namespace

EXPORTED int mmedge_abi() { return ABI; }

// The name of the instruction set that is used: that of this name, or the best where it is empty; null where it cannot be used here.
EXPORTED const char* mmedge_kernels(const char* name) {
    const Kernels* found = kernels_named(name);
    return found ? found->name : nullptr;
}

EXPORTED int mmedge_open(const Plan* plan, const Matrix* matrices, const Block* blocks, const uint8_t* weights, uint64_t size,
                         int threads, int callers, const char* kernels, Engine** engine, char* message, int room) {
    return guarded(message, room, [&]() -> std::string {
        const Kernels* found = kernels_named(kernels);
        if (!found) return "this processor or this library has no such kernels";
        if (threads < 1 || threads > 1024 || callers < 1 || callers > 1024) return "threads and callers must be from 1 to 1024";
        auto model = std::make_unique<Model>();
        std::string wrong = read_model(*plan, matrices, blocks, weights, size, *model);
        if (!wrong.empty()) return wrong;
        pack_columns(*model, *found, MOST_PANELS);
        *engine = new Engine(std::move(model), *found, threads, callers);
        return "";
    });
}

EXPORTED void mmedge_close(Engine* engine) { delete engine; }

EXPORTED int mmedge_cache(const Engine* engine, int64_t rows, int64_t capacity, Cache** cache, char* message, int room) {
    return guarded(message, room, [&]() -> std::string {
        if (rows < 1 || rows > MOST_ROWS || capacity < 1 || capacity > INT_MAX - 64) return "a cache has an impossible size";
        auto found = make_cache(engine->model(), engine->model().plan.cache, rows, capacity, engine->model().layers);
        if (!found) return "out of memory";
        *cache = found.release();
        return "";
    });
}

EXPORTED void mmedge_cache_close(Cache* cache) { delete cache; }

// The bytes of a position's keys and values.
EXPORTED int64_t mmedge_position_bytes(const Engine* engine) {
    const Model& model = engine->model();
    return 2 * group_bytes(model.plan.cache, model.plan.head_width) / 8 * model.plan.kv_heads * model.layers;
}

// The bytes of a row's states; 0 where the model has none, so that what was read can be taken back.
EXPORTED int64_t mmedge_state_bytes(const Engine* engine) { return engine->model().states * static_cast<int64_t>(sizeof(float)); }

// Copies the states of rows of one cache, and nothing else, into rows of another.
EXPORTED int mmedge_state_copy(const Engine* engine, const Cache* from, const int64_t* rows, int64_t count, Cache* to,
                               const int64_t* targets, char* message, int room) {
    return guarded(message, room, [&]() -> std::string {
        if (from->of != &engine->model() || to->of != &engine->model()) return "a cache is of another model";
        for (int64_t place = 0; place < count; ++place) {
            if (rows[place] < 0 || rows[place] >= from->rows || targets[place] < 0 || targets[place] >= to->rows) return "a cache has no such row";
            if (from != to || rows[place] != targets[place]) copy_states(*from, static_cast<int>(rows[place]), *to, static_cast<int>(targets[place]));
        }
        return "";
    });
}

// Copies the first `lengths[n]` positions of row `rows[n]` of one cache into row `targets[n]` of another, or of the same one; where there
// are states, these are all positions or none.
EXPORTED int mmedge_cache_copy(const Engine* engine, const Cache* from, const int64_t* rows, const int64_t* lengths, int64_t count,
                               Cache* to, const int64_t* targets, char* message, int room) {
    return guarded(message, room, [&]() -> std::string {
        const Model& model = engine->model();
        if (from->of != &model || to->of != &model) return "a cache is of another model";
        for (int64_t place = 0; place < count; ++place) {
            const int64_t row = rows[place], target = targets[place], length = lengths[place];
            if (row < 0 || row >= from->rows || target < 0 || target >= to->rows) return "a cache has no such row";
            if (length < 0 || length > from->capacity || length > to->capacity) return "a cache is too small";
            if (model.states && length && length != from->read[static_cast<size_t>(row)]) return "a row's states hold another number of tokens";
            if (from == to && row == target) continue;
            if (length) copy_states(*from, static_cast<int>(row), *to, static_cast<int>(target));
            else forget_states(*to, static_cast<int>(target));
            const size_t bytes = static_cast<size_t>((length + 7) / 8 * group_bytes(from->type, model.plan.head_width));
            for (int layer = 0; layer < model.layers; ++layer)
                for (int head = 0; head < model.plan.kv_heads; ++head) {
                    const Kept source = from->head(static_cast<int>(row), layer, head), end = to->head(static_cast<int>(target), layer, head);
                    std::memcpy(end.keys, source.keys, bytes);
                    std::memcpy(end.values, source.values, bytes);
                }
        }
        return "";
    });
}

// Encodes contexts, of `counts[n]` tokens each; `ids` holds them one behind the other. Each is kept in a cache of its own.
EXPORTED int mmedge_encode(Engine* engine, const int64_t* ids, const int64_t* counts, int64_t count, Cache** encoded, char* message,
                           int room) {
    return guarded(message, room, [&]() -> std::string {
        const Model& model = engine->model();
        if (model.encoder.empty()) return "the model has no encoder";
        if (count < 0 || count > MOST_ROWS) return "impossibly many contexts";
        std::vector<std::unique_ptr<Cache>> found;
        std::vector<int> tokens;
        int64_t place = 0;
        for (int64_t row = 0; row < count; ++row) {
            if (counts[row] < 1 || counts[row] > model.plan.positions) return "a context is empty, or longer than the model has positions for";
            for (int64_t end = place + counts[row]; place < end; ++place) {
                if (ids[place] < 0 || ids[place] >= model.plan.vocabulary) return "a token is not in the vocabulary";
                tokens.push_back(static_cast<int>(ids[place]));
            }
            found.push_back(make_cache(model, model.plan.cache, 1, counts[row], model.layers));
            if (!found.back()) return "out of memory";
            found.back()->length = static_cast<int>(counts[row]);
        }
        engine->encode(tokens, found);
        for (int64_t row = 0; row < count; ++row) encoded[row] = found[static_cast<size_t>(row)].release();
        return "";
    });
}

// Reads `counts[row]` tokens of each row, from position `starts[row]` on; `ids` holds them one row behind the other.
// `encoded` holds what each row's context was encoded to; it is null where the model has no encoder.
// Writes logits, (wanted_count, vocabulary); `wanted` holds places in `ids`, in ascending order.
EXPORTED int mmedge_read(Engine* engine, Cache* cache, const int64_t* ids, const int64_t* counts, const int64_t* starts,
                         const Cache* const* encoded, const int64_t* wanted, int64_t wanted_count, float* logits, char* message,
                         int room) {
    return guarded(message, room, [&]() -> std::string {
        const Model& model = engine->model();
        const Plan& plan = model.plan;
        const bool encodes = !model.encoder.empty();
        if (cache->of != &model || (encodes && !encoded)) return "a cache is of another model";
        std::vector<Token> tokens;
        int64_t place = 0;
        for (int row = 0; row < cache->rows; ++row) {
            const int64_t longest = cache->capacity < plan.positions ? cache->capacity : plan.positions;
            if (starts[row] < 0 || counts[row] < 0 || starts[row] > longest || counts[row] > longest - starts[row])
                return "more tokens than the cache or the model has positions for";
            if (model.states && counts[row] && starts[row] && starts[row] != cache->read[static_cast<size_t>(row)])
                return "a row's states hold another number of tokens";
            if (encodes && counts[row] && (!encoded[row] || encoded[row]->of != &model || !encoded[row]->length))
                return "a row has no encoded context";
            for (int64_t index = 0; index < counts[row]; ++index, ++place) {
                if (ids[place] < 0 || ids[place] >= plan.vocabulary) return "a token is not in the vocabulary";
                tokens.push_back({row, static_cast<int>(starts[row] + index), static_cast<int>(ids[place])});
            }
        }
        std::vector<int> places;
        for (int64_t index = 0; index < wanted_count; ++index) {
            if (wanted[index] < 0 || wanted[index] >= place || (index && wanted[index] <= wanted[index - 1]))
                return "logits are wanted of a token that is not read";
            places.push_back(static_cast<int>(wanted[index]));
        }
        for (int row = 0; row < cache->rows; ++row)
            if (counts[row]) begin_reading(*cache, row, starts[row]);
        engine->read(*cache, encodes ? encoded : nullptr, tokens, places, logits);
        for (int row = 0; row < cache->rows; ++row)
            if (counts[row]) cache->read[static_cast<size_t>(row)] = static_cast<int>(starts[row] + counts[row]);
        return "";
    });
}
