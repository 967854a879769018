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
enum { RUN, LISTED, NUMBER, TABLE, OF_ROWS };
enum { RELU, TANH, SIGMOID, EXP, NEG, ELU, SILU, SOFTPLUS, ABS, ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM };
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
    // By its series where the exponential is near 1.
    const real small = x * (1 + x * (real(1) / 2 + x * (real(1) / 6 + x * (real(1) / 24 + x * (real(1) / 120)))));
    return x > real(-1e-2) ? small : exp_of(x) - 1;
}

// ---- Weighted sums

static inline integer place(const integer* code, integer step) {
    return code[0] + ((step - code[1]) & code[2]) * code[3];
}

enum { HEAD = 8, PER_RUN = 6 };  // integers of an affine instruction, and of each of its runs

#if LANES == 1
static void affine(const integer* code, const real* weights, real* memory, integer step) {
    const integer outputs = code[4], runs = code[7];
    real* out = memory + place(code + 1, step);
    const real* weight = weights + code[5];
    const real* bias = weights + code[6];
    enum { BLOCK = 256 / sizeof(real) };  // four registers
    integer first = 0;
    for (; first + BLOCK <= outputs; first += BLOCK) {
        real sum[BLOCK];
        for (int o = 0; o < BLOCK; o++) sum[o] = bias[first + o];
        for (integer run = 0; run < runs; run++) {
            const integer* one = code + HEAD + PER_RUN * run;
            const real* x = memory + place(one, step);
            const integer length = one[4];
            const real* row = weight + one[5] * outputs + first;
            for (integer i = 0; i < length; i++, row += outputs)
                for (int o = 0; o < BLOCK; o++) sum[o] += x[i] * row[o];
        }
        for (int o = 0; o < BLOCK; o++) out[first + o] = sum[o];
    }
    if (first == outputs) return;
    const integer rest = outputs - first;
    real sum[BLOCK];
    for (integer o = 0; o < rest; o++) sum[o] = bias[first + o];
    for (integer run = 0; run < runs; run++) {
        const integer* one = code + HEAD + PER_RUN * run;
        const real* x = memory + place(one, step);
        const integer length = one[4];
        const real* row = weight + one[5] * outputs + first;
        for (integer i = 0; i < length; i++, row += outputs)
            for (integer o = 0; o < rest; o++) sum[o] += x[i] * row[o];
    }
    for (integer o = 0; o < rest; o++) out[first + o] = sum[o];
}
#else
template <int outputs_at_once>
static inline void some_sums(const integer* code, const real* weight, const real* bias,
                             integer first, real* memory, integer step) {
    const integer outputs = code[4], runs = code[7];
    enum { PART = LANES < 128 / (int)sizeof(real) ? LANES : 128 / (int)sizeof(real) };
    for (int lane = 0; lane < LANES; lane += PART) {
        real sum[outputs_at_once][PART];
        for (int o = 0; o < outputs_at_once; o++)
            for (int l = 0; l < PART; l++) sum[o][l] = bias[first + o];
        for (integer run = 0; run < runs; run++) {
            const integer* one = code + HEAD + PER_RUN * run;
            const real* x = memory + place(one, step) * LANES + lane;
            const integer length = one[4];
            const real* row = weight + one[5] * outputs + first;
            for (integer i = 0; i < length; i++, row += outputs, x += LANES)
                for (int o = 0; o < outputs_at_once; o++)
                    for (int l = 0; l < PART; l++) sum[o][l] += row[o] * x[l];
        }
        real* out = memory + (place(code + 1, step) + first) * LANES + lane;
        for (int o = 0; o < outputs_at_once; o++)
            for (int l = 0; l < PART; l++) out[o * LANES + l] = sum[o][l];
    }
}

static void affine(const integer* code, const real* weights, real* memory, integer step) {
    const integer outputs = code[4];
    const real *weight = weights + code[5], *bias = weights + code[6];
    integer first = 0;
    for (; first + 8 <= outputs; first += 8) some_sums<8>(code, weight, bias, first, memory, step);
    for (; first < outputs; first++) some_sums<1>(code, weight, bias, first, memory, step);
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
// kind, and where: four integers of a place, of which others than a run use the first alone.
static const real* gathered(const Operands& from, const integer* code, integer count, real* room,
                            integer step) {
    const integer kind = code[0], at = code[1];
    if (kind == RUN) return from.memory + place(code + 1, step) * LANES;
    if (kind == OF_ROWS) return from.of_rows + at * LANES;
    if (kind == LISTED) {
        const integer* index = from.indices + 4 * at;
        for (integer i = 0; i < count; i++, index += 4) {
            const real* x = from.memory + place(index, step) * LANES;
            for (int lane = 0; lane < LANES; lane++) room[i * LANES + lane] = x[lane];
        }
        return room;
    }
    for (integer i = 0; i < count; i++)
        for (int lane = 0; lane < LANES; lane++)
            room[i * LANES + lane] = from.numbers[kind == TABLE ? at + i : at];
    return room;
}

#define EACH for (integer i = 0; i < size; i++)
static void apply(integer function, integer size, const real* a, const real* b, real* out) {
    switch (function) {
        case RELU: EACH out[i] = a[i] > 0 ? a[i] : 0; break;
        case TANH: EACH out[i] = tanh_of(a[i]); break;
        case SIGMOID: EACH out[i] = sigmoid(a[i]); break;
        case EXP: EACH out[i] = exp_of(a[i]); break;
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

// ---- Drawing an element by a uniform number

static real drawn_category(const real* probability, integer categories, real uniform) {
    double total = 0;
    for (integer k = 0; k < categories; k++) total += probability[k];
    const double level = uniform * total;
    double cumulative = 0;
    for (integer k = 0; k < categories; k++) {
        cumulative += probability[k];
        if (cumulative > level) return real(k);
    }
    return real(categories - 1);
}

static void softmax(real* x, integer count) {
    real largest = x[0];
    for (integer k = 1; k < count; k++) largest = x[k] > largest ? x[k] : largest;
    for (integer k = 0; k < count; k++) x[k] = exp_of(x[k] - largest);
}

static void mixture(const real* numbers, integer components, integer categories, real temperature,
                    real* weight, real* probability) {
    for (integer k = 0; k < components; k++) weight[k] = numbers[k] / temperature;
    softmax(weight, components);
    double total = 0;
    for (integer k = 0; k < components; k++) total += weight[k];
    for (integer c = 0; c < categories; c++) probability[c] = 0;
    const real half = real(1) / (categories - 1);
    for (integer k = 0; k < components; k++) {
        const real loc = numbers[components + k];
        real log_scale = numbers[2 * components + k];
        log_scale = log_scale < -7 ? -7 : log_scale;
        const real precision = exp_of(-log_scale) / temperature, share = real(weight[k] / total);
        for (integer c = 0; c < categories; c++) {
            const real centred = 2 * half * c - 1 - loc;
            const real upper = c == categories - 1 ? 1 : sigmoid(precision * (centred + half));
            const real lower = c == 0 ? 0 : sigmoid(precision * (centred - half));
            probability[c] += share * (upper - lower);
        }
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
    real* room;            // twice as long as the longest operand, and three times the numbers
    const real* uniforms;  // (element, LANES)
    const real* given;     // (element, LANES), NaN where there is nothing given
    real* drawn;           // (element, LANES)
    integer likelihood, categories, components;
    double temperature, top_p;
};

static void draw(const integer* code, const Call& call, const Operands& from, integer step) {
    const integer element = code[1] < 0 ? step : code[1], count = code[6];
    const real* all = gathered(from, code + 7, count, call.room, step);
    real* numbers = call.room + count * LANES;
    for (int lane = 0; lane < LANES; lane++) {
        const real known = call.given[element * LANES + lane];
        real value = known;
        if (known != known) {
            for (integer k = 0; k < count; k++) numbers[k] = all[k * LANES + lane];
            const real uniform = call.uniforms[element * LANES + lane];
            if (call.likelihood == BERNOULLI) {
                value = uniform >= 1 - sigmoid(numbers[0] / real(call.temperature)) ? 1 : 0;
            } else {
                const integer categories = call.categories;
                real *probability = numbers + count, *beside = probability + categories;
                if (call.likelihood == CATEGORICAL) {
                    for (integer k = 0; k < count; k++) probability[k] = numbers[k] / real(call.temperature);
                    softmax(probability, count);
                } else {
                    mixture(numbers, call.components, categories, real(call.temperature), beside, probability);
                }
                if (call.top_p < 1) keep_top(probability, categories, call.top_p, beside);
                value = drawn_category(probability, categories, uniform);
            }
        }
        call.drawn[element * LANES + lane] = value;
        call.memory[place(code + 2, step) * LANES + lane] = value;
    }
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
