// Runs the schedule of an autoregressive network for several rows at once, each row in a lane.
//
// Set by the compiler's flags: REAL (float or double) and LANES (rows at once: 1, or a multiple of
// the numbers in a register). The number at place p of row r is memory[p * LANES + r].
//
// Numbers of a sequence have a ring of places: those of `step`, the last ones `mask` + 1 in number.
// Code says where by four integers: the first place, the lag, the mask and the width of the ring.
#define CALLED extern "C" __attribute__((visibility("default")))
typedef REAL real;
typedef long long integer;

enum { AFFINE, POINTWISE, DRAW };
enum { RUN, LISTED, NUMBER, TABLE, OF_ROWS, IN_TIME };
enum { RELU, TANH, SIGMOID, EXP, NEG, ELU, SILU, SOFTPLUS, ABS, ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM, LOG };
enum { BERNOULLI, CATEGORICAL, LOGISTIC_MIXTURE };

// ---- Mathematics, without branches, so that the compiler works on whole registers

static inline double exp_of(double x) {
    x = x < -708.0 ? -708.0 : x > 709.0 ? 709.0 : x;
    const double shift = 6755399441055744.0;  // adds up to the nearest integer
    double n = x * 1.4426950408889634 + shift;
    union { double d; unsigned long long i; } bits = {n};
    n -= shift;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.6059043836821613e-10;
    p = p * r + 2.0876756987868099e-09;
    p = p * r + 2.5052108385441719e-08;
    p = p * r + 2.7557319223985893e-07;
    p = p * r + 2.7557319223985888e-06;
    p = p * r + 2.4801587301587302e-05;
    p = p * r + 1.9841269841269841e-04;
    p = p * r + 1.3888888888888889e-03;
    p = p * r + 8.3333333333333332e-03;
    p = p * r + 4.1666666666666664e-02;
    p = p * r + 1.6666666666666666e-01;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    union { unsigned long long i; double d; } scale = {(bits.i + 1023) << 52};
    return p * scale.d;
}

static inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shift = 12582912.0f;
    float n = x * 1.44269504f + shift;
    union { float d; unsigned i; } bits = {n};
    n -= shift;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9841270e-4f;
    p = p * r + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666668e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union { unsigned i; float d; } scale = {(bits.i + 127) << 23};
    return p * scale.d;
}

static inline real sigmoid(real x) { return 1 / (1 + exp_of(-x)); }
static inline real tanh_of(real x) { return 1 - 2 / (1 + exp_of(2 * x)); }
static inline real expm1_of(real x) {
    // By its series near 0, where the exponential loses digits.
    real series = 1;
#define TERM(n) series = 1 + series * (x * (real(1) / n));
    TERM(14) TERM(13) TERM(12) TERM(11) TERM(10) TERM(9) TERM(8) TERM(7) TERM(6) TERM(5) TERM(4) TERM(3) TERM(2)
    return x > real(-0.3) ? x * series : exp_of(x) - 1;
}

#define EACH_LANE for (int l = 0; l < LANES; l++)

// ---- Weighted sums

// A register, and how many numbers are in one.
#if defined(__AVX512F__)
enum { REGISTER = 64, SUMS = 24 };
#elif defined(__AVX__)
enum { REGISTER = 32, SUMS = 12 };
#else
enum { REGISTER = 16, SUMS = 12 };
#endif
enum { WIDE = REGISTER / sizeof(real) };
typedef real vec __attribute__((vector_size(REGISTER), aligned(sizeof(real)), may_alias));
#define UNROLLED(i, n) _Pragma("GCC unroll 32") for (int i = 0; i < (n); i++)

static inline vec load(const real* from) { return *(const vec*)from; }
static inline void store(real* to, vec x) { *(vec*)to = x; }

static inline integer place(const integer* code, integer step) {
    return code[0] + ((step - code[1]) & code[2]) * code[3];
}

// Integers of an affine instruction, and of each of its runs: place (four), outputs (the width of the
// ring), where its weights and its bias are, runs, inputs; place (four), length, first input.
enum { HEAD = 9, PER_RUN = 6 };

// Outputs are made in panels, as many as sums fit in registers, the widest first. The weights of a
// panel are one after the other as they are read: (input, output of the panel). `panel_widths` says
// to Python how wide panels are. Of one row, outputs that fill no register are made one by one, by
// weights (output, input).
#if LANES == 1

CALLED const integer panel_widths[] = {8 * WIDE, 4 * WIDE, 2 * WIDE, WIDE, 0};

template <int registers>
static void panel(const integer* code, const real* weight, const real* bias, const real* memory,
                  real* out, integer step) {
    vec sum[registers];
    UNROLLED(r, registers) sum[r] = load(bias + r * WIDE);
    const integer* one = code + HEAD;
    for (integer run = 0; run < code[7]; run++, one += PER_RUN) {
        const real* x = memory + place(one, step);
        const real* row = weight + one[5] * registers * WIDE;
        for (integer i = 0; i < one[4]; i++, row += registers * WIDE)
            UNROLLED(r, registers) sum[r] += x[i] * load(row + r * WIDE);
    }
    UNROLLED(r, registers) store(out + r * WIDE, sum[r]);
}

static real single(const integer* code, const real* weight, real sum, const real* memory, integer step) {
    vec sums[4] = {};
    const integer* one = code + HEAD;
    for (integer run = 0; run < code[7]; run++, one += PER_RUN) {
        const real* x = memory + place(one, step);
        const real* row = weight + one[5];
        const integer length = one[4];
        integer i = 0;
        for (; i + 4 * WIDE <= length; i += 4 * WIDE)
            UNROLLED(r, 4) sums[r] += load(x + i + r * WIDE) * load(row + i + r * WIDE);
        for (; i + WIDE <= length; i += WIDE) sums[0] += load(x + i) * load(row + i);
        for (; i < length; i++) sum += x[i] * row[i];
    }
    sums[0] += sums[1] + (sums[2] + sums[3]);
    UNROLLED(r, WIDE) sum += sums[0][r];
    return sum;
}

static void affine(const integer* code, const real* weights, real* memory, integer step) {
    const integer outputs = code[4], inputs = code[8];
    const real *weight = weights + code[5], *bias = weights + code[6];
    real* out = memory + place(code + 1, step);
    integer first = 0;
#define PANELS(n)                                                                            \
    for (; first + n * WIDE <= outputs; first += n * WIDE)                                   \
        panel<n>(code, weight + first * inputs, bias + first, memory, out + first, step);
    PANELS(8) PANELS(4) PANELS(2) PANELS(1)
    for (; first < outputs; first++)
        out[first] = single(code, weight + first * inputs, bias[first], memory, step);
}

#else

// Lanes are taken by one or two registers.
enum { SIDE = LANES <= WIDE ? 1 : 2, PART = SIDE * WIDE, MOST = SUMS / SIDE };
CALLED const integer panel_widths[] = {MOST, MOST >= 16 ? 16 : 8, 8, 4, 2, 1, 0};

template <int width>
static void panel(const integer* code, const real* weight, const real* bias, const real* memory,
                  real* out, integer step) {
    vec sum[width][SIDE];
    UNROLLED(o, width) UNROLLED(s, SIDE) sum[o][s] = bias[o] + vec{};
    const integer* one = code + HEAD;
    for (integer run = 0; run < code[7]; run++, one += PER_RUN) {
        const real* x = memory + place(one, step) * LANES;
        const real* row = weight + one[5] * width;
        for (integer i = 0; i < one[4]; i++, row += width, x += LANES) {
            vec here[SIDE];
            UNROLLED(s, SIDE) here[s] = load(x + s * WIDE);
            UNROLLED(o, width) UNROLLED(s, SIDE) sum[o][s] += row[o] * here[s];
        }
    }
    UNROLLED(o, width) UNROLLED(s, SIDE) store(out + o * LANES + s * WIDE, sum[o][s]);
}

static void affine(const integer* code, const real* weights, real* memory, integer step) {
    const integer outputs = code[4], inputs = code[8];
    const real *weight = weights + code[5], *bias = weights + code[6];
    real* out = memory + place(code + 1, step) * LANES;
    for (integer lane = 0; lane < LANES; lane += PART) {
        integer first = 0;
#define PANELS(n)                                                                        \
        for (; first + n <= outputs; first += n)                                         \
            panel<n>(code, weight + first * inputs, bias + first, memory + lane,         \
                     out + first * LANES + lane, step);
        PANELS(MOST) PANELS((MOST >= 16 ? 16 : 8)) PANELS(8) PANELS(4) PANELS(2) PANELS(1)
    }
}

#endif

// ---- Functions of single numbers

struct Operands {
    const real* memory;
    const integer* indices;
    const real* numbers;
    const real* of_rows;
};

// Copies the numbers of an operand, where they are not one after the other already. Code says the
// kind, and where: four integers of a place. What changes with time and row is the same for as many
// steps as the third of them says.
static const real* gathered(const Operands& from, const integer* code, integer count, real* room,
                            integer step) {
    const integer kind = code[0], at = code[1];
    if (kind == RUN) return from.memory + place(code + 1, step) * LANES;
    if (kind == OF_ROWS) return from.of_rows + at * LANES;
    if (kind == IN_TIME) return from.of_rows + (at + (step - code[2]) / code[3] * code[4]) * LANES;
    if (kind == LISTED) {
        const integer* index = from.indices + 4 * at;
        for (integer i = 0; i < count; i++, index += 4) {
            const real* x = from.memory + place(index, step) * LANES;
            EACH_LANE room[i * LANES + l] = x[l];
        }
        return room;
    }
    for (integer i = 0; i < count; i++)
        EACH_LANE room[i * LANES + l] = from.numbers[kind == TABLE ? place(code + 1, step) + i : at];
    return room;
}

#define EACH for (integer i = 0; i < size; i++)
static void apply(integer function, integer size, const real* a, const real* b, real* out) {
    switch (function) {
        case RELU: EACH out[i] = a[i] < 0 ? 0 : a[i]; break;  // NaN stays
        case TANH: EACH out[i] = tanh_of(a[i]); break;
        case SIGMOID: EACH out[i] = sigmoid(a[i]); break;
        case EXP: EACH out[i] = real(__builtin_exp(a[i])); break;  // beyond what exp_of has, too
        case NEG: EACH out[i] = -a[i]; break;
        case ELU: EACH out[i] = a[i] > 0 ? a[i] : expm1_of(a[i]); break;
        case SILU: EACH out[i] = a[i] * sigmoid(a[i]); break;
        case SOFTPLUS: EACH out[i] = __builtin_log1p(exp_of(a[i] > 0 ? -a[i] : a[i])) + (a[i] > 0 ? a[i] : 0); break;
        case ABS: EACH out[i] = a[i] < 0 ? -a[i] : a[i]; break;
        case ADD: EACH out[i] = a[i] + b[i]; break;
        case SUB: EACH out[i] = a[i] - b[i]; break;
        case MUL: EACH out[i] = a[i] * b[i]; break;
        case DIV: EACH out[i] = a[i] / b[i]; break;
        case MAXIMUM: EACH out[i] = a[i] > b[i] ? a[i] : b[i]; break;
        case LOG: EACH out[i] = real(__builtin_log(a[i])); break;
        case MINIMUM: EACH out[i] = a[i] < b[i] ? a[i] : b[i]; break;
    }
}

static integer pointwise(const integer* code, const Operands& from, real* memory, real* room,
                         integer step) {
    enum { HEAD_HERE = 7, PER_OPERAND = 5 };
    const integer count = code[5], operands = code[6], size = count * LANES;
    if (step < code[3]) return HEAD_HERE + PER_OPERAND * operands;  // before the beginning
    const real* values[2] = {0, 0};
    for (integer k = 0; k < operands; k++)
        values[k] = gathered(from, code + HEAD_HERE + PER_OPERAND * k, count, room + k * size, step);
    apply(code[1], size, values[0], values[1], memory + place(code + 2, step) * LANES);
    return HEAD_HERE + PER_OPERAND * operands;
}

// ---- Drawing an element by a uniform number: NaN where there are no probabilities

// An exponential that is zero where exp_of has its least: what cannot be is not drawn.
static inline real weight_of(real x) { return x < (sizeof(real) == 8 ? -708 : -87) ? 0 : exp_of(x); }

static real drawn_category(const real* probability, integer categories, real uniform) {
    double total = 0;
    for (integer k = 0; k < categories; k++) total += probability[k];
    if (total != total) return real(total);
    const double level = uniform * total;
    double cumulative = 0;
    for (integer k = 0; k < categories; k++) {
        cumulative += probability[k];
        if (cumulative > level) return real(k);
    }
    return real(categories - 1);
}

static void softmax(const real* x, integer count, real temperature, real* probability) {
    real largest = x[0];
    for (integer k = 1; k < count; k++) largest = x[k] > largest ? x[k] : largest;
    for (integer k = 0; k < count; k++) probability[k] = weight_of((x[k] - largest) / temperature);
}

// Draws categories for all lanes at once: numbers (category, lane) become their probabilities.
static void draw_categories(const real* numbers, integer categories, real temperature,
                            const real* uniforms, real* probability, real* drawn) {
    real largest[LANES];
    double total[LANES] = {}, level[LANES], cumulative[LANES] = {};
    EACH_LANE largest[l] = numbers[l];
    for (integer k = 1; k < categories; k++) {
        const real* x = numbers + k * LANES;
        EACH_LANE largest[l] = x[l] > largest[l] ? x[l] : largest[l];
    }
    for (integer k = 0; k < categories; k++) {
        const real* x = numbers + k * LANES;
        real* p = probability + k * LANES;
        EACH_LANE p[l] = weight_of((x[l] - largest[l]) / temperature);
        EACH_LANE total[l] += p[l];
    }
    EACH_LANE level[l] = uniforms[l] * total[l];
    EACH_LANE drawn[l] = total[l] == total[l] ? 0 : real(total[l]);
    for (integer k = 0; k < categories - 1; k++) {
        const real* p = probability + k * LANES;
        EACH_LANE cumulative[l] += p[l];
        EACH_LANE drawn[l] += cumulative[l] <= level[l] ? 1 : 0;
    }
}

static void mixture(const real* numbers, integer components, integer categories, real temperature,
                    real* room, real* probability) {
    real *weight = room, *below = room + components;
    softmax(numbers, components, temperature, weight);
    double total = 0;
    for (integer k = 0; k < components; k++) total += weight[k];
    for (integer c = 0; c < categories; c++) probability[c] = 0;
    const real half = real(1) / (categories - 1);
    for (integer k = 0; k < components; k++) {
        const real loc = numbers[components + k];
        real log_scale = numbers[2 * components + k];
        log_scale = log_scale < -7 ? -7 : log_scale > 20 ? 20 : log_scale;
        const real precision = exp_of(-log_scale) / temperature, share = real(weight[k] / total);
        // The probability of what is below the upper edge of each category but the last.
        for (integer c = 0; c < categories - 1; c++)
            below[c] = sigmoid(precision * (2 * half * c - 1 - loc + half));
        probability[0] += share * below[0];
        for (integer c = 1; c < categories - 1; c++) probability[c] += share * (below[c] - below[c - 1]);
        probability[categories - 1] += share * (1 - below[categories - 2]);
    }
}

// Keeps the likeliest categories that together have a share of the whole.
static void keep_top(real* probability, integer categories, double share, real* room) {
    double total = 0;
    for (integer k = 0; k < categories; k++) total += probability[k], room[k] = probability[k];
    double kept = 0;
    real least = 0;
    for (integer rank = 0; rank < categories && kept < share * total; rank++) {
        integer best = 0;
        for (integer k = 1; k < categories; k++) best = room[k] > room[best] ? k : best;
        least = room[best];
        kept += least;
        room[best] = -1;
    }
    for (integer k = 0; k < categories; k++)
        if (probability[k] < least) probability[k] = 0;
}

struct Call {
    const integer* code;
    const real* weights;
    const integer* indices;
    const real* numbers;
    const real* of_rows;
    real* memory;
    real* room;            // for two operands, or the numbers of an element and what is made of them
    const real* uniforms;  // (element, LANES)
    const real* given;     // (element, LANES), NaN where there is nothing given; null for nothing
    real* drawn;           // (element, LANES)
    integer likelihood, categories, components;
    double temperature, top_p;
};

static void draw(const integer* code, const Call& call, const Operands& from, integer step) {
    const integer element = code[1] < 0 ? step : code[1], count = code[6];
    const integer categories = call.categories;
    const real temperature = real(call.temperature);
    const real* all = gathered(from, code + 7, count, call.room, step);
    const real* uniforms = call.uniforms + element * LANES;
    real* values = call.drawn + element * LANES;
    real* room = call.room + count * LANES;
    if (call.likelihood == BERNOULLI) {
        const real share = real(call.top_p);
        EACH_LANE {
            real one = sigmoid(all[l] / temperature);
            // The likelier value alone, where its share is enough.
            if (share < 1 && one != real(0.5) && (one > 1 - one ? one : 1 - one) >= share)
                one = one > real(0.5) ? 1 : 0;
            values[l] = one != one ? one : uniforms[l] >= 1 - one ? 1 : 0;
        }
    } else if (call.likelihood == CATEGORICAL && call.top_p == 1) {
        draw_categories(all, categories, temperature, uniforms, room, values);
    } else {
        real *numbers = room, *probability = room + count, *beside = probability + categories;
        EACH_LANE {
            for (integer k = 0; k < count; k++) numbers[k] = all[k * LANES + l];
            if (call.likelihood == CATEGORICAL)
                softmax(numbers, count, temperature, probability);
            else
                mixture(numbers, call.components, categories, temperature, beside, probability);
            if (call.top_p < 1) keep_top(probability, categories, call.top_p, beside);
            values[l] = drawn_category(probability, categories, uniforms[l]);
        }
    }
    if (call.given) {
        const real* given = call.given + element * LANES;
        EACH_LANE values[l] = given[l] == given[l] ? given[l] : values[l];
    }
    real* memory = call.memory + place(code + 2, step) * LANES;
    EACH_LANE memory[l] = values[l];
}

// Runs code from `start` to `stop`, once for each of some steps.
CALLED void run(const Call* call, integer start, integer stop, integer first, integer last) {
    const Operands from = {call->memory, call->indices, call->numbers, call->of_rows};
    for (integer step = first; step < last; step++)
        for (integer at = start; at < stop;) {
            const integer* code = call->code + at;
            switch (code[0]) {
                case AFFINE:  // before the beginning all stays zero
                    if (step >= code[2]) affine(code, call->weights, call->memory, step);
                    at += HEAD + PER_RUN * code[7];
                    break;
                case POINTWISE:
                    at += pointwise(code, from, call->memory, call->room, step);
                    break;
                default:
                    draw(code, *call, from, step);
                    at += 12;
            }
        }
}
