// The run-time library of generated code: W Markov chains at once, one chain per lane of a `vec`.
//
// Set by the compiler's flags: W (lanes: 1, 2, 4, 8 or 16) and REAL (double or float). Compile with
//     g++ -std=c++17 -O2 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math
// and link with -lmvec where the C library is glibc on x86-64. Never with -ffast-math: NaN and
// infinity must behave. No header of C++ is included, because they take long to compile.
//
// `vec`, W numbers of type REAL, is what generated code sees: a plain number for W = 1, one
// register where W lanes fit in it, several registers where they do not. Operators, `select`, `any`
// and the functions v_... serve all three; only `m ? a : b` and `x[lane]` do not. The mathematics
// is done on `dvec`, one register of doubles (functions d_...), for float as well. The result in
// a lane never depends on the other lanes.
#pragma once
#ifdef __linux__
#include <features.h>
#endif
// Wide vectors are passed between static functions only, so their ABI is no concern.
#pragma GCC diagnostic ignored "-Wpsabi"

#define FN static inline
#define BIG __attribute__((noinline, unused)) static  // compiled once, however often called
// At the head of a function that reads or writes through pointers: g++ 12 may take one whose loops
// it has rewritten to computed addresses for a function of its arguments, and drop the call.
#define MEMORY __asm__ volatile("" ::: "memory")
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)  // unrolled
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define SIZE_OF_double 8
#define SIZE_OF_float 4
#define SIZE PASTE(SIZE_OF_, REAL)

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define REGISTER 64
#elif defined(__AVX2__)
#define REGISTER 32
#else
#define REGISTER 16
#endif

// A vec's lanes are computed in PIECES of LANES doubles.
#if W == 1
#define LANES 2
#elif W * 8 <= REGISTER
#define LANES W
#else
#define LANES (REGISTER / 8)
#endif
#define PIECES (W <= LANES ? 1 : W / LANES)

// ---- Types and what every one of them understands ------------------------------------------

typedef REAL real;
typedef double dvec __attribute__((vector_size(LANES * 8)));
typedef decltype(dvec{} < dvec{}) dmask;

#if W == 1

typedef real vec;
typedef bool mask;
FN real get(vec x, int) { return x; }
FN void put(vec& x, int, real value) { x = value; }
FN vec select(mask m, vec a, vec b) { return m ? a : b; }
FN bool any(mask m) { return m; }

#elif W * SIZE <= REGISTER

// In memory a vec needs the alignment of one number only, so that any buffer of numbers serves.
typedef real vec __attribute__((vector_size(W * SIZE), aligned(SIZE)));
typedef decltype(vec{} < vec{}) mask;
FN real get(vec x, int lane) { return x[lane]; }
FN void put(vec& x, int lane, real value) { x[lane] = value; }
FN vec select(mask m, vec a, vec b) { return m ? a : b; }
FN bool any(mask m) {
    long r = 0;
    EACH(l, W) r |= m[l];
    return r != 0;
}

#else

#define PART (REGISTER / SIZE)
#define PARTS (W / PART)
typedef real part __attribute__((vector_size(REGISTER), aligned(SIZE)));
typedef decltype(part{} < part{}) part_mask;
struct mask {
    part_mask p[PARTS];
};
struct vec {
    part p[PARTS];
    vec() = default;
    vec(real x) { EACH(i, PARTS) p[i] = x - part{}; }
};
#define OPERATOR(type, op, result)                                \
    FN result operator op(const type& a, const type& b) {         \
        result r;                                                 \
        EACH(i, PARTS) r.p[i] = a.p[i] op b.p[i];                 \
        return r;                                                 \
    }
#define ASSIGNMENT(type, op) \
    FN type& operator op##=(type& a, const type& b) { return a = a op b; }
OPERATOR(vec, +, vec)
OPERATOR(vec, -, vec)
OPERATOR(vec, *, vec)
OPERATOR(vec, /, vec)
OPERATOR(vec, <, mask)
OPERATOR(vec, <=, mask)
OPERATOR(vec, >, mask)
OPERATOR(vec, >=, mask)
OPERATOR(vec, ==, mask)
OPERATOR(vec, !=, mask)
OPERATOR(mask, &, mask)
OPERATOR(mask, |, mask)
OPERATOR(mask, ^, mask)
ASSIGNMENT(vec, +)
ASSIGNMENT(vec, -)
ASSIGNMENT(vec, *)
ASSIGNMENT(vec, /)
ASSIGNMENT(mask, &)
ASSIGNMENT(mask, |)
#undef OPERATOR
#undef ASSIGNMENT
FN vec operator-(const vec& a) {
    vec r;
    EACH(i, PARTS) r.p[i] = -a.p[i];
    return r;
}
FN mask operator!(const mask& a) {
    mask r;
    EACH(i, PARTS) r.p[i] = ~a.p[i];
    return r;
}
FN real get(const vec& x, int lane) { return x.p[lane / PART][lane % PART]; }
FN void put(vec& x, int lane, real value) { x.p[lane / PART][lane % PART] = value; }
FN vec select(const mask& m, const vec& a, const vec& b) {
    vec r;
    EACH(i, PARTS) r.p[i] = m.p[i] ? a.p[i] : b.p[i];
    return r;
}
FN bool any(const mask& m) {
    part_mask s = m.p[0];
    EACH(i, PARTS) s |= m.p[i];
    long r = 0;
    EACH(l, PART) r |= s[l];
    return r != 0;
}

#endif

FN vec splat(real x) { return x - vec{}; }                       // x in every lane
FN vec from_mask(mask m) { return select(m, splat(1), vec{}); }  // a stored Boolean: 0 or 1
FN mask to_mask(vec x) { return x != vec{}; }                    // anything but 0 is true
FN vec load(const real* p) {                                     // W numbers of any alignment
    vec x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
FN void store(real* p, vec x) { __builtin_memcpy(p, &x, sizeof x); }
template <int n>
struct Steps {  // a number of steps as a type, for a loop's body that is compiled for each
    static constexpr int count = n;
};

#define INF __builtin_inf()
#define NAN_ __builtin_nan("")

// ---- Cheap functions of vec ----------------------------------------------------------------

#if SIZE == 8
#define LIBM(name) __builtin_##name
#else
#define LIBM(name) __builtin_##name##f
#endif
#define EACH_LANE(name, function)                        \
    FN vec name(vec x) {                                 \
        vec r;                                           \
        EACH(l, W) put(r, l, LIBM(function)(get(x, l))); \
        return r;                                        \
    }
// One instruction each: the compiler joins the lanes.
EACH_LANE(v_sqrt, sqrt)
EACH_LANE(v_floor, floor)
EACH_LANE(v_ceil, ceil)
EACH_LANE(v_trunc, trunc)
EACH_LANE(v_round, nearbyint)  // half to even
#undef EACH_LANE
#undef LIBM

FN vec v_abs(vec x) { return select(x > vec{}, x, vec{} - x); }
FN vec v_neg(vec x) { return -x; }
FN vec v_sign(vec x) { return from_mask(x > vec{}) - from_mask(x < vec{}); }  // of NaN: 0
FN vec v_reciprocal(vec x) { return (real)1 / x; }
FN vec v_rsqrt(vec x) { return (real)1 / v_sqrt(x); }
FN mask v_isnan(vec x) { return x != x; }
FN mask v_isfinite(vec x) { return x - x == vec{}; }
FN vec v_maximum(vec a, vec b) { return select((a > b) | (a != a), a, b); }  // of NaN: NaN
FN vec v_minimum(vec a, vec b) { return select((a < b) | (a != a), a, b); }
FN vec v_clamp(vec x, vec low, vec high) { return v_minimum(v_maximum(x, low), high); }

// ---- Mathematics on dvec -------------------------------------------------------------------

FN dvec d_splat(double x) { return x - dvec{}; }
FN bool d_any(dmask m) {
    long r = 0;
    EACH(l, LANES) r |= m[l];
    return r != 0;
}
#define LOOP1(name)                                        \
    FN dvec d_##name(dvec x) {                             \
        dvec r;                                            \
        EACH(l, LANES) r[l] = __builtin_##name(x[l]);      \
        return r;                                          \
    }
#define LOOP2(name)                                        \
    FN dvec d_##name(dvec x, dvec y) {                     \
        dvec r;                                            \
        EACH(l, LANES) r[l] = __builtin_##name(x[l], y[l]); \
        return r;                                          \
    }
LOOP1(sqrt)
LOOP1(nearbyint)
LOOP1(fabs)

FN dvec d_fma(dvec x, dvec y, dvec z) {
    dvec r;
    EACH(l, LANES) r[l] = __builtin_fma(x[l], y[l], z[l]);
    return r;
}

// glibc's libmvec: all values within 4 ulp, special values as in libm (both tested). Elsewhere a
// loop over libm.
#if defined(__x86_64__) && defined(__GLIBC__)
#if LANES == 8
#define MVEC_ _ZGVeN8v
#elif LANES == 4
#define MVEC_ _ZGVdN4v
#else
#define MVEC_ _ZGVbN2v
#endif
#define CALL1(name)                                                                    \
    extern "C" __attribute__((const)) dvec PASTE(MVEC_, _##name)(dvec);                \
    FN dvec d_##name(dvec x) { return PASTE(MVEC_, _##name)(x); }
#define CALL2(name)                                                                    \
    extern "C" __attribute__((const)) dvec PASTE(MVEC_, v_##name)(dvec, dvec);         \
    FN dvec d_##name(dvec x, dvec y) { return PASTE(MVEC_, v_##name)(x, y); }
#if __GLIBC_PREREQ(2, 22)
#define OLD1 CALL1
#define OLD2 CALL2
#endif
#if __GLIBC_PREREQ(2, 35)
#define NEW1 CALL1
#define NEW2 CALL2
#endif
#endif
#ifndef OLD1
#define OLD1 LOOP1
#define OLD2 LOOP2
#endif
#ifndef NEW1
#define NEW1 LOOP1
#define NEW2 LOOP2
#endif
OLD1(exp)
OLD1(log)
OLD1(sin)
OLD1(cos)
OLD2(pow)
NEW1(exp2)
NEW1(expm1)
NEW1(log1p)
NEW1(log2)
NEW1(log10)
NEW1(tan)
NEW1(asin)
NEW1(acos)
NEW1(atan)
NEW1(sinh)
NEW1(cosh)
NEW1(tanh)
NEW1(asinh)
NEW1(acosh)
NEW1(atanh)
NEW1(erf)
NEW1(erfc)
NEW2(atan2)
LOOP2(fmod)

// c[0] + c[1] x + ... + c[n - 1] x^(n - 1), n even, in two chains of half the latency.
__attribute__((always_inline)) FN dvec d_poly(dvec x, const double* c, int n) {
    dvec z = x * x, even = d_splat(c[n - 2]), odd = d_splat(c[n - 1]);
#pragma GCC unroll 16
    for (int i = n - 4; i >= 0; i -= 2) {
        even = even * z + c[i];
        odd = odd * z + c[i + 1];
    }
    return even + x * odd;
}

// c[0] + c[1] T_1(x) + ... + c[n - 1] T_(n - 1)(x), by Clenshaw's recurrence.
FN dvec d_chebyshev(dvec x, const double* c, int n) {
    dvec a{}, b{}, z = x + x;
    for (int i = n - 1; i > 0; i--) {
        dvec t = z * a - b + c[i];
        b = a;
        a = t;
    }
    return x * a - b + c[0];
}

FN dvec d_sigmoid(dvec x) { return 1 / (1 + d_exp(-x)); }
FN dvec d_log_sigmoid(dvec x) { return (x < 0 ? x : dvec{}) - d_log1p(d_exp(-d_fabs(x))); }
FN dvec d_softplus(dvec x, double beta, double threshold) {
    return x * beta > threshold ? x : d_log1p(d_exp(x * beta)) / beta;
}
FN dvec d_logaddexp(dvec x, dvec y) {
    dvec high = x > y ? x : y;
    dvec r = high + d_log1p(d_exp(-d_fabs(x - y)));
    return x == y ? x + 0.6931471805599453 : r;  // of two infinities, too
}
FN dvec d_xlogy(dvec x, dvec y) {
    dvec r = x * d_log(y);
    return ((x == 0) & (y == y)) ? dvec{} : r;
}
FN dvec d_xlog1py(dvec x, dvec y) {
    dvec r = x * d_log1p(y);
    return ((x == 0) & (y == y)) ? dvec{} : r;
}
FN dvec d_remainder(dvec x, dvec y) {  // Python's: the sign of y
    dvec r = d_fmod(x, y);
    return ((r != 0) & ((r < 0) != (y < 0))) ? r + y : r;
}

// x^n by repeated squaring.
FN dvec d_powi(dvec x, int n) {
    dvec r = d_splat(1), square = x;
    for (unsigned i = n < 0 ? -(unsigned)n : n; i; i >>= 1) {
        if (i & 1) r *= square;
        square *= square;
    }
    return n < 0 ? 1 / r : r;
}

// log |Gamma(x)|, relative error of a few ulp for x > -1/2, beyond that an absolute one: with
// a = |x|, log Gamma(2 + t) = t S(t) for |t| <= 1/2 (S interpolated at Chebyshev points), which
// up to five factors of the recurrence extend to a < 7.5; Stirling's series from there on;
// reflection for x <= -1/2.
BIG dvec d_lgamma(dvec x) {
    static const double s[] = {
        0.42278433509846713, 0.3224670334241132, -0.06735230105319563, 0.02058080842778338,
        -0.007385551028935545, 0.002890510330865901, -0.0011927539009983087,
        0.0005096695196526673, -0.00022315497746292723, 9.945761692157133e-05,
        -4.4923727564247656e-05, 2.050601970174762e-05, -9.45628851510172e-06,
        4.3828545383846665e-06, -1.9743106888421067e-06, 9.242852225162277e-07,
        -5.811277768921246e-07, 2.7475390051909663e-07};
    static const double stirling[] = {
        0.08333333333333333, -0.002777777777777778, 0.0007936507936507937, -0.0005952380952380953,
        0.0008417508417508417, -0.0019175269175269176, 0.00641025641025641, -0.029550653594771242};
    const double pi = 3.141592653589793;
    dvec a = d_fabs(x), one = d_splat(1);
    dmask far = a >= 7.5, middle = a < 1.5, tiny = a < 0.5;
    dvec steps = d_nearbyint(a - 2), y = a - steps;  // y = 2 + t
    dvec product = (steps > 0 ? y : one) * (steps > 1 ? y + 1 : one);
    product *= (steps > 2 ? y + 2 : one) * (steps > 3 ? y + 3 : one);
    product *= steps > 4 ? y + 4 : one;
    product = tiny ? d_fabs(x * (x + 1)) : (middle ? a : product);
    dvec t = tiny ? x : (middle ? a - 1 : y - 2);
    dvec log = d_log(far ? a : product);
    dvec near = t * d_poly(t, s, 18) + (middle ? -log : log);
    dvec i = 1 / a;
    dvec r = far ? (a - 0.5) * (log - 1) + (i * d_poly(i * i, stirling, 8) + 0.4189385332046727)
                 : near;
    dmask negative = x <= -0.5;
    if (d_any(negative)) {
        dvec sine = d_fabs(d_sin(pi * (a - d_nearbyint(a))));
        r = negative ? d_log(pi / (a * sine)) - r : r;
        r = (negative & (a > 4.5e15)) ? d_splat(INF) : r;  // integers, all of them poles
    }
    return r;
}

// The derivative of log Gamma(x): below 8, eight steps of the recurrence as one fraction; from
// there on, the asymptotic series; reflection for x < 0. Error: a few ulp of max(1, |result|).
BIG dvec d_digamma(dvec x) {
    static const double c[] = {
        0.08333333333333333, -0.008333333333333333, 0.003968253968253968, -0.004166666666666667,
        0.007575757575757576, -0.021092796092796094, 0.08333333333333333, -0.4432598039215686,
        3.0539543302701198, -26.456212121212122};
    const double pi = 3.141592653589793;
    dmask negative = x < 0;
    dvec y = negative ? 1 - x : x;
    dmask small = y < 8;
    // 1 / (y + i) + 1 / (y + 7 - i) = (2 y + 7) / (u + i (7 - i)).
    dvec u = y * (y + 7), outer = u * (u + 6), inner = (u + 10) * (u + 12);
    dvec numerator = (2 * y + 7) * ((2 * u + 6) * inner + (2 * u + 22) * outer);
    dvec denominator = outer * inner;
    dvec w = small ? y + 8 : y, i = 1 / w, z = i * i;
    dvec r = d_log(w) - (0.5 * i + z * d_poly(z, c, 10));
    r = small ? r - numerator / denominator : r;
    if (d_any(negative)) {
        dvec t = x - d_nearbyint(x);
        r = negative ? (t == 0 ? d_splat(NAN_) : r - pi / d_tan(pi * t)) : r;
    }
    return r;
}

// The second derivative of log Gamma(x), by the same steps.
BIG dvec d_trigamma(dvec x) {
    static const double c[] = {
        0.16666666666666666, -0.03333333333333333, 0.023809523809523808, -0.03333333333333333,
        0.07575757575757576, -0.2531135531135531, 1.1666666666666667, -7.092156862745098,
        54.971177944862156, -529.1242424242424};
    const double pi = 3.141592653589793;
    dmask negative = x < 0;
    dvec y = negative ? 1 - x : x, numerator = d_splat(1), denominator = y * y;
    dmask small = y < 8;
    EACH(i, 7) {
        dvec square = (y + (i + 1)) * (y + (i + 1));
        numerator = numerator * square + denominator;
        denominator *= square;
    }
    dvec w = small ? y + 8 : y, i = 1 / w, z = i * i;
    dvec r = i + z * (0.5 + i * d_poly(z, c, 10));
    r = small ? r + numerator / denominator : r;
    if (d_any(negative)) {
        dvec sine = d_sin(pi * (x - d_nearbyint(x)));
        r = negative ? pi * pi / (sine * sine) - r : r;
    }
    return r;
}

// The n-th derivative of digamma: (-1)^(n + 1) n! zeta(n + 1, x), Hurwitz's zeta by the recurrence
// up to x >= 10 + n (from below zero, too) and Euler-Maclaurin summation from there on.
BIG dvec d_polygamma(int n, dvec x) {
    static const double c[] = {
        0.08333333333333333, -0.001388888888888889, 3.306878306878307e-05, -8.267195767195768e-07,
        2.08767569878681e-08, -5.284190138687493e-10, 1.3382536530684679e-11,
        -3.3896802963225827e-13, 8.586062056277845e-15, -2.174868698558062e-16};
    if (n == 0) return d_digamma(x);
    if (n == 1) return d_trigamma(x);
    const double enough = 10 + n;
    dvec sum{};
    for (int i = 0; i < 1000 && d_any(x < enough); i++) {
        dmask below = x < enough;
        sum = below ? sum + d_powi(x, -n - 1) : sum;
        x = below ? x + 1 : x;
    }
    dvec power = d_powi(x, -n - 1), term = power / x;  // term: x^-(n + 2 k), s = n + 1
    sum += power * x / n + 0.5 * power;
    double rising = n + 1, factorial = 1;
    for (int k = 0; k < 10; k++) {
        sum += c[k] * rising * term;
        rising *= (n + 2 + 2 * k) * (n + 3 + 2 * k);
        term /= x * x;
    }
    for (int i = 2; i <= n; i++) factorial *= i;
    dvec r = sum * (n % 2 ? factorial : -factorial);
    return x < enough ? d_splat(NAN_) : r;
}

// The normal quantile function, given p - 1/2 and the smaller of p and 1 - p. Wichura (1988),
// "Algorithm AS 241: the percentage points of the normal distribution".
BIG dvec d_normal_quantile(dvec q, dvec tail) {
    static const double a[] = {3.3871328727963666080e0, 1.3314166789178437745e2,
                               1.9715909503065514427e3, 1.3731693765509461125e4,
                               4.5921953931549871457e4, 6.7265770927008700853e4,
                               3.3430575583588128105e4, 2.5090809287301226727e3};
    static const double b[] = {1.0, 4.2313330701600911252e1, 6.8718700749205790830e2,
                               5.3941960214247511077e3, 2.1213794301586595867e4,
                               3.9307895800092710610e4, 2.8729085735721942674e4,
                               5.2264952788528545610e3};
    static const double c[] = {1.42343711074968357734e0, 4.63033784615654529590e0,
                               5.76949722146069140550e0, 3.64784832476320460504e0,
                               1.27045825245236838258e0, 2.41780725177450611770e-1,
                               2.27238449892691845833e-2, 7.74545014278341407640e-4};
    static const double d[] = {1.0, 2.05319162663775882187e0, 1.67638483018380384940e0,
                               6.89767334985100004550e-1, 1.48103976427480074590e-1,
                               1.51986665636164571966e-2, 5.47593808499534494600e-4,
                               1.05075007164441684324e-9};
    static const double e[] = {6.65790464350110377720e0, 5.46378491116411436990e0,
                               1.78482653991729133580e0, 2.96560571828504891230e-1,
                               2.65321895265761230930e-2, 1.24266094738807843860e-3,
                               2.71155556874348757815e-5, 2.01033439929228813265e-7};
    static const double f[] = {1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
                               1.48753612908506148525e-2, 7.86869131145613259100e-4,
                               1.84631831751005468180e-5, 1.42151175831644588870e-7,
                               2.04426310338993978564e-15};
    dvec z = 0.180625 - q * q, s = d_sqrt(-d_log(tail)), near = s - 1.6, far = s - 5;
    dvec body = q * (d_poly(z, a, 8) / d_poly(z, b, 8));
    dvec wing = near <= 3.4 ? d_poly(near, c, 8) / d_poly(near, d, 8)
                            : d_poly(far, e, 8) / d_poly(far, f, 8);
    wing = tail == 0 ? d_splat(INF) : wing;
    wing = q < 0 ? -wing : wing;
    return tail >= 0 ? (d_fabs(q) <= 0.425 ? body : wing) : d_splat(NAN_);
}
FN dvec d_ndtri(dvec p) { return d_normal_quantile(p - 0.5, p < 0.5 ? p : 1 - p); }
FN dvec d_erfinv(dvec x) {
    return d_normal_quantile(0.5 * x, 0.5 * (1 - d_fabs(x))) * 0.7071067811865476;
}

// The sum over k > 0 of (2 k - 1)!! (-z)^k, the asymptotic series of the normal's tails.
FN dvec d_tail_series(dvec z) {
    static const double c[] = {-1, 3, -15, 105, -945, 10395, -135135, 2027025};
    return z * d_poly(z, c, 8);
}
// The logarithm of the normal distribution function. The rounding error of |x| / sqrt(2), which
// erfc magnifies, is computed and taken out to first order.
BIG dvec d_log_ndtr(dvec x) {
    const double root = 0.7071067811865476, root_error = -4.833646656726457e-17;
    dvec a = d_fabs(x), b = a < 40 ? a : d_splat(40), y = b * root;
    dvec error = d_fma(b, d_splat(root), -y) + b * root_error;
    dvec half = 0.5 * d_erfc(y) * (1 - 2 * y * error);
    dvec log = d_log(x > -20 ? half : a);
    dvec tail = -0.5 * a * a - log - 0.9189385332046727 + d_log1p(d_tail_series(1 / (a * a)));
    dvec r = x > 0 ? d_log1p(-half) : (x > -20 ? log : tail);
    return x == -INF ? x : r;
}
// exp(x^2) erfc(x), the square in two parts, since exp magnifies its rounding error by x^2.
BIG dvec d_erfcx(dvec x) {
    dvec a = d_fabs(x), high = a * a, low = d_fma(a, a, -high);
    dvec e = d_exp(high) * (1 + low);
    dvec r = a < 20 ? e * d_erfc(a) : (1 + d_tail_series(0.5 / high)) * 0.5641895835477563 / a;
    return x < 0 ? (high < 1000 ? 2 * e - r : d_splat(INF)) : r;
}

// The modified Bessel functions of the first kind, divided by exp(|x|), as Chebyshev expansions in
// x up to 8 and in 1 / x beyond; i1 has the factor x, or its sign, in front.
FN dvec d_bessel(dvec a, const double* low, int low_n, const double* high, int high_n, dmask far) {
    return far ? d_chebyshev(16 / a - 1, high, high_n) / d_sqrt(a)
               : d_chebyshev(0.25 * a - 1, low, low_n);
}
BIG dvec d_i0e(dvec x) {
    static const double low[] = {
        0.33839763720473803, -0.3046826723431984, 0.17162090152220877, -0.09490109704804764,
        0.04930528423967071, -0.02373741480589947, 0.010546460394594998, -0.004324309995050576,
        0.0016394756169413357, -0.0005763755745385824, 0.00018850288509584165,
        -5.754195010082104e-05, 1.6448448070728896e-05, -4.4167383584587505e-06,
        1.1173875391201037e-06, -2.670793853940612e-07, 6.046995022541919e-08,
        -1.300025009986248e-08, 2.6598237246823866e-09, -5.189795601635263e-10,
        9.675809035373237e-11, -1.726826291441556e-11, 2.95505266312964e-12,
        -4.856446783111929e-13, 7.676185498604936e-14, -1.1685332877993451e-14,
        1.715391285555133e-15, -2.431279846547955e-16, 3.3307945188222384e-17,
        -4.4153416464793395e-18, 5.669178006921496e-19};
    static const double high[] = {
        0.4022452055070544, 0.0033691164782556943, 6.889758346916825e-05, 2.8913705208347567e-06,
        2.0489185894690638e-07, 2.266668990498178e-08, 3.3962320257083865e-09,
        4.94060238822497e-10, 1.1889147107846439e-11, -3.1499165279632416e-11,
        -1.3215811840447713e-11, -1.7941785315068062e-12, 7.180124451383666e-13,
        3.8527783827421426e-13, 1.54008621752141e-14, -4.150569347287222e-14,
        -9.554846698828307e-15, 3.8116806693526224e-15, 1.7725601330565263e-15,
        -3.425485619677219e-16, -2.8276239805165836e-16, 3.4612228676974606e-17,
        4.465621420296762e-17, -4.830504485944218e-18, -7.233180487874774e-18,
        9.921475412175305e-19, 1.1936508908457661e-18};
    dvec a = d_fabs(x);
    return d_bessel(a, low, sizeof low / 8, high, sizeof high / 8, a > 8);
}
BIG dvec d_i1e(dvec x) {
    static const double low[] = {
        0.12629359322181682, -0.17641651835783406, 0.1026436586898471, -0.05294598120809499,
        0.024726449030626516, -0.010564084894626197, 0.004156422944312888,
        -0.0015135724506312532, 0.0005122859561685758, -0.00016176081582589674,
        4.781565107550054e-05, -1.3273163656039436e-05, 3.4702513081376785e-06,
        -8.568720264695455e-07, 2.0032947535521353e-07, -4.445059128796328e-08,
        9.381537386495773e-09, -1.8872497517228294e-09, 3.625590281552117e-10,
        -6.663489723502027e-11, 1.1736186298890901e-11, -1.9839743977649436e-12,
        3.223793365945575e-13, -5.042185504727912e-14, 7.600684294735408e-15,
        -1.1055969477353862e-15, 1.5536319577362005e-16, -2.111421214358166e-17,
        2.7779141127610464e-18, -3.541581772542136e-19};
    static const double high[] = {
        0.38928811750914005, -0.009761097491361469, -0.00011058893876262371,
        -3.882564808877691e-06, -2.512236237870209e-07, -2.6314688468895196e-08,
        -3.835380385964237e-09, -5.589743462196584e-10, -1.8974958123505413e-11,
        3.2526035830154884e-11, 1.4125807436613782e-11, 2.0356285441470896e-12,
        -7.198551776245908e-13, -4.0835511110921974e-13, -2.1015418427726643e-14,
        4.272440016711951e-14, 1.0420276984128802e-14, -3.8144030724370075e-15,
        -1.8803547755107825e-15, 3.308202310920928e-16, 2.96262899764595e-16,
        -3.209525921993424e-17, -4.6503053684893605e-17, 4.414348323071745e-18,
        7.517296310842124e-18, -9.314178867328502e-19, -1.2421932751946678e-18};
    dvec a = d_fabs(x);
    dmask far = a > 8;
    dvec r = d_bessel(a, low, sizeof low / 8, high, sizeof high / 8, far);
    return far ? (x < 0 ? -r : r) : x * r;
}
FN dvec d_i0(dvec x) { return d_exp(d_fabs(x)) * d_i0e(x); }
FN dvec d_i1(dvec x) { return d_exp(d_fabs(x)) * d_i1e(x); }

// ---- The same functions of vec -------------------------------------------------------------

#if W == 1
FN dvec piece(vec x, int) { return d_splat(x); }
FN void put_piece(vec& x, int, dvec value) { x = value[0]; }
#else
typedef real real_piece __attribute__((vector_size(LANES * SIZE)));
FN dvec piece(const vec& x, int i) {
    real_piece t;
    __builtin_memcpy(&t, (const char*)&x + i * sizeof t, sizeof t);
    return __builtin_convertvector(t, dvec);
}
FN void put_piece(vec& x, int i, dvec value) {
    real_piece t = __builtin_convertvector(value, real_piece);
    __builtin_memcpy((char*)&x + i * sizeof t, &t, sizeof t);
}
#endif
#define LIFT(name, parameters, ...)                              \
    FN vec v_##name parameters {                                 \
        vec r;                                                   \
        EACH(i, PIECES) put_piece(r, i, d_##name(__VA_ARGS__));  \
        return r;                                                \
    }
#define LIFT1(name) LIFT(name, (vec x), piece(x, i))
#define LIFT2(name) LIFT(name, (vec x, vec y), piece(x, i), piece(y, i))
LIFT1(exp)
LIFT1(exp2)
LIFT1(expm1)
LIFT1(log)
LIFT1(log1p)
LIFT1(log2)
LIFT1(log10)
LIFT1(sin)
LIFT1(cos)
LIFT1(tan)
LIFT1(asin)
LIFT1(acos)
LIFT1(atan)
LIFT1(sinh)
LIFT1(cosh)
LIFT1(tanh)
LIFT1(asinh)
LIFT1(acosh)
LIFT1(atanh)
LIFT1(sigmoid)
LIFT1(log_sigmoid)
LIFT1(erf)
LIFT1(erfc)
LIFT1(erfinv)
LIFT1(ndtri)
LIFT1(log_ndtr)
LIFT1(erfcx)
LIFT1(lgamma)
LIFT1(digamma)
LIFT1(trigamma)
LIFT1(i0)
LIFT1(i0e)
LIFT1(i1)
LIFT1(i1e)
LIFT2(pow)
LIFT2(atan2)
LIFT2(fmod)
LIFT2(remainder)
LIFT2(logaddexp)
LIFT2(xlogy)
LIFT2(xlog1py)
LIFT(softplus, (vec x, double beta, double threshold), piece(x, i), beta, threshold)
LIFT(polygamma, (int n, vec x), n, piece(x, i))
LIFT(powi, (vec x, int n), piece(x, i), n)
#undef LIFT1
#undef LIFT2
#undef LIFT

// x^e for a constant e, the exponents that torch special-cases and small integers without `pow`.
__attribute__((always_inline)) FN vec v_pow_scalar(vec x, double e) {
    if (e == 0.5) return v_sqrt(x);
    if (e == -0.5) return v_rsqrt(x);
    if (e == (int)e && e >= -8 && e <= 8) return v_powi(x, (int)e);
    return v_pow(x, splat((real)e));
}

// ---- Matrices ------------------------------------------------------------------------------
//
// Dense, row-major, one vec an element: (i, j) of an n-column matrix is a[i * n + j]. Inputs have
// a stride, in elements, for each axis, so that a transpose is an exchange of strides. `each`
// marks a matrix that every chain has its own of, `shared` one of plain numbers for all chains.

struct each {
    typedef vec type;
};
struct shared {
    typedef real type;
};

// What becomes of the old values of the result.
enum update { ASSIGN, ADD, SUBTRACT };

// R rows of a matrix times a vector: eight sums at once, whatever R, to hide the latency of FMA.
template <class A, class B, int R>
BIG void row_products(vec* out, long os, const typename A::type* a, long ars, long acs,
                      const typename B::type* b, long bs, long k, update mode) {
    MEMORY;
    constexpr int S = 8 / R;
    vec sum[8];
    EACH(i, 8) sum[i] = vec{};
    long p = 0;
    for (; p + S <= k; p += S) {
        EACH(s, S) {
            typename B::type factor = b[s * bs];
            EACH(r, R) sum[s * R + r] += a[r * ars + s * acs] * factor;
        }
        a += S * acs;
        b += S * bs;
    }
    for (; p < k; p++) {
        EACH(r, R) sum[r] += a[r * ars] * b[0];
        a += acs;
        b += bs;
    }
    EACH(r, R) {
        vec total = sum[r];
        EACH(s, S - 1) total += sum[(s + 1) * R + r];
        vec& o = out[r * os];
        o = mode == ASSIGN ? total : mode == ADD ? o + total : o - total;
    }
}

// One column (or row) of a product: out[i] = sum over p of a[i, p] b[p], for m rows.
template <class A, class B>
BIG void matvec(vec* out, long os, const typename A::type* a, long ars, long acs,
                const typename B::type* b, long bs, long m, long k, update mode) {
    MEMORY;
    long i = 0;
    for (; i + 8 <= m; i += 8)
        row_products<A, B, 8>(out + i * os, os, a + i * ars, ars, acs, b, bs, k, mode);
    if (m & 4) {
        row_products<A, B, 4>(out + i * os, os, a + i * ars, ars, acs, b, bs, k, mode);
        i += 4;
    }
    if (m & 2) {
        row_products<A, B, 2>(out + i * os, os, a + i * ars, ars, acs, b, bs, k, mode);
        i += 2;
    }
    if (m & 1) row_products<A, B, 1>(out + i * os, os, a + i * ars, ars, acs, b, bs, k, mode);
}

// out (m, n) = a (m, k) b (k, n), in blocks of a that stay in the cache. The longer of m and n is
// the one that matvec runs along. Sums longer than a block are gathered in `out`.
template <class A, class B>
BIG void matmul(vec* out, const typename A::type* a, long ars, long acs,
                const typename B::type* b, long brs, long bcs, long m, long k, long n,
                update mode = ASSIGN) {
    MEMORY;
    bool along_rows = m >= n;
    long length = along_rows ? m : n, width = along_rows ? n : m, p = 0;
    long bytes = along_rows ? sizeof(typename A::type) : sizeof(typename B::type);
    long block = bytes > 16 && width > 1 ? 16 : 128;
    do {
        long depth = k - p < block ? k - p : block;
        for (long i = 0; i < length; i += block) {
            long rows = length - i < block ? length - i : block;
            for (long j = 0; j < width; j++) {
                if (along_rows)
                    matvec<A, B>(out + i * n + j, n, a + i * ars + p * acs, ars, acs,
                                 b + p * brs + j * bcs, brs, rows, depth, mode);
                else
                    matvec<B, A>(out + j * n + i, 1, b + i * bcs + p * brs, bcs, brs,
                                 a + p * acs + j * ars, acs, rows, depth, mode);
            }
        }
        if (mode == ASSIGN) mode = ADD;
        p += block;
    } while (p < k);
}

// out (n, n) lower triangular with out out^T = a, from a's lower triangle. A lane whose matrix is
// not positive definite holds NaN in the whole lower triangle.
BIG void cholesky(vec* out, const vec* a, long ars, long acs, long n) {
    MEMORY;
    mask bad = vec{} != vec{};
    for (long j = 0; j < n; j++) {
        vec* row = out + j * n;
        for (long i = 0; i < j; i++) out[i * n + j] = vec{};
        for (long i = j; i < n; i++) out[i * n + j] = a[i * ars + j * acs];
        matvec<each, each>(row + j, n, row, n, 1, row, 1, n - j, j, SUBTRACT);
        mask failed = !(row[j] > vec{});
        bad = bad | failed;
        row[j] = v_sqrt(select(failed, splat(NAN_), row[j]));
        vec scale = (real)1 / row[j];
        for (long i = j + 1; i < n; i++) out[i * n + j] *= scale;
    }
    if (any(bad))
        for (long i = 0; i < n; i++)
            for (long j = 0; j <= i; j++)
                out[i * n + j] = select(bad, splat(NAN_), out[i * n + j]);
}

FN void cholesky(vec* a, long n) { cholesky(a, a, n, 1, n); }  // in place

// x (n, m) := t^-1 x in place for a triangular t (n, n), upper or lower as it is addressed.
template <class T>
BIG void solve_triangular(vec* x, long xrs, long xcs, const typename T::type* t, long trs,
                          long tcs, long n, long m, bool upper, bool unit) {
    MEMORY;
    for (long done = 0; done < n; done++) {
        long i = upper ? n - 1 - done : done, first = upper ? i + 1 : 0;
        matvec<each, T>(x + i * xrs, xcs, x + first * xrs, xcs, xrs, t + i * trs + first * tcs,
                        tcs, m, done, SUBTRACT);
        if (unit) continue;
        vec scale = (real)1 / (t[i * trs + i * tcs] + vec{});
        for (long j = 0; j < m; j++) x[i * xrs + j * xcs] *= scale;
    }
}

FN void solve_triangular(const vec* t, vec* x, long n, long m, bool upper, bool unit) {
    solve_triangular<each>(x, m, 1, t, n, 1, n, m, upper, unit);
}

// out = t^-1 b (left: out and b are n x m), or out = b t^-1 (out and b are m x n); for t^T
// exchange its strides and `upper`.
template <class T>
BIG void triangular_solve(vec* out, const typename T::type* t, long trs, long tcs, const vec* b,
                          long brs, long bcs, long n, long m, bool upper, bool unit, bool left) {
    MEMORY;
    long rows = left ? n : m, columns = left ? m : n;
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) out[i * columns + j] = b[i * brs + j * bcs];
    // b t^-1 is the transpose of (t^T)^-1 b^T.
    if (left)
        solve_triangular<T>(out, m, 1, t, trs, tcs, n, m, upper, unit);
    else
        solve_triangular<T>(out, 1, n, t, tcs, trs, n, m, !upper, unit);
}

FN void exchange(mask m, vec& a, vec& b) {
    vec t = a;
    a = select(m, b, a);
    b = select(m, t, b);
}

// P a = L U with partial pivoting, lane by lane: lu (n, n) holds U and, below, L without its unit
// diagonal; piv (n) the row, counted from 1, that each row was exchanged with, as LAPACK does.
BIG void lu_factor(vec* lu, vec* piv, const vec* a, long ars, long acs, long n) {
    MEMORY;
    for (long i = 0; i < n; i++)
        for (long j = 0; j < n; j++) lu[i * n + j] = a[i * ars + j * acs];
    for (long k = 0; k < n; k++) {
        vec* top = lu + k * n;
        vec best = v_abs(top[k]);
        piv[k] = splat((real)(k + 1));
        for (long i = k + 1; i < n; i++) {
            vec size = v_abs(lu[i * n + k]);
            mask larger = size > best;
            best = select(larger, size, best);
            piv[k] = select(larger, splat((real)(i + 1)), piv[k]);
        }
        for (long i = k + 1; i < n; i++) {
            mask here = piv[k] == splat((real)(i + 1));
            if (any(here))
                for (long j = 0; j < n; j++) exchange(here, top[j], lu[i * n + j]);
        }
        // A column of zeros stays one: the matrix is singular, and its determinant 0.
        vec scale = select(top[k] == vec{}, vec{}, (real)1 / top[k]);
        for (long i = k + 1; i < n; i++) {
            vec* row = lu + i * n;
            vec factor = row[k] * scale;
            row[k] = factor;
            for (long j = k + 1; j < n; j++) row[j] -= factor * top[j];
        }
    }
}

// out = a^-1 b (left: out and b are n x m) or b a^-1 (m x n), or the same with a^T (adjoint), from
// lu_factor's result.
BIG void lu_solve(vec* out, const vec* lu, const vec* piv, const vec* b, long brs, long bcs, long n,
                  long m, bool left, bool adjoint) {
    MEMORY;
    long rows = left ? n : m, columns = left ? m : n, xrs = left ? m : 1, xcs = left ? 1 : n;
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) out[i * columns + j] = b[i * brs + j * bcs];
    bool transposed = adjoint == left;
    if (transposed) {
        solve_triangular<each>(out, xrs, xcs, lu, 1, n, n, m, false, false);
        solve_triangular<each>(out, xrs, xcs, lu, 1, n, n, m, true, true);
    }
    for (long step = 0; step < n; step++) {
        long k = transposed ? n - 1 - step : step;
        for (long i = k + 1; i < n; i++) {
            mask here = piv[k] == splat((real)(i + 1));
            if (any(here))
                for (long j = 0; j < m; j++)
                    exchange(here, out[k * xrs + j * xcs], out[i * xrs + j * xcs]);
        }
    }
    if (!transposed) {
        solve_triangular<each>(out, xrs, xcs, lu, n, 1, n, m, false, true);
        solve_triangular<each>(out, xrs, xcs, lu, n, 1, n, m, true, false);
    }
}

// sign det a = sign, log |det a| = log_abs, from lu_factor's result.
BIG void lu_slogdet(vec* sign, vec* log_abs, const vec* lu, const vec* piv, long n) {
    MEMORY;
    vec s = splat(1), total{};
    for (long i = 0; i < n; i++) {
        vec d = lu[i * n + i];
        mask negative = (d < vec{}) ^ (piv[i] != splat((real)(i + 1)));
        s = select(d == vec{}, vec{}, select(negative, -s, s));
        total += v_log(v_abs(d));
    }
    *sign = s;
    *log_abs = total;
}

// det a, from lu_factor's result.
BIG vec lu_det(const vec* lu, const vec* piv, long n) {
    MEMORY;
    vec r = splat(1);
    for (long i = 0; i < n; i++) r *= select(piv[i] != splat((real)(i + 1)), -lu[i * n + i],
                                             lu[i * n + i]);
    return r;
}

// out (n, n) = a^-1; lu (n, n) and piv (n) receive a's factors.
BIG void inverse(vec* out, vec* lu, vec* piv, const vec* a, long ars, long acs, long n) {
    MEMORY;
    vec unit[2] = {vec{}, splat(1)};
    lu_factor(lu, piv, a, ars, acs, n);
    for (long i = 0; i < n * n; i++) out[i] = unit[i % (n + 1) == 0];
    lu_solve(out, lu, piv, out, n, 1, n, n, true, false);
}

// Eigenvalues w (n), ascending, and eigenvectors, the columns of v (n, n), of the symmetric matrix
// in a's lower triangle, by cyclic Jacobi rotations to an absolute error of a few ulp of its norm;
// work (n, n) is overwritten. The sign of an eigenvector is arbitrary.
BIG void eigh(vec* w, vec* v, vec* work, const vec* a, long ars, long acs, long n) {
    MEMORY;
    vec norm{};
    for (long i = 0; i < n; i++)
        for (long j = 0; j < n; j++) {
            vec x = i < j ? a[j * ars + i * acs] : a[i * ars + j * acs];
            work[i * n + j] = x;
            v[i * n + j] = splat(i == j);
            norm += x * x;
        }
    vec negligible = v_sqrt(norm) * (real)(SIZE == 8 ? 1e-17 : 1e-9), one = splat(1);
    bool rotated = true;
    for (int sweep = 0; sweep < 30 && rotated; sweep++) {
        rotated = false;
        for (long p = 0; p < n; p++)
            for (long q = p + 1; q < n; q++) {
                vec x = work[p * n + q];
                mask turn = v_abs(x) > negligible;
                if (!any(turn)) continue;
                rotated = true;
                vec theta = (work[q * n + q] - work[p * n + p]) / (x + x);
                vec t = one / (v_abs(theta) + v_sqrt(theta * theta + one));
                t = select(turn, select(theta < vec{}, -t, t), vec{});
                vec c = v_rsqrt(t * t + one), s = t * c;
                for (long i = 0; i < n; i++) {
                    vec ip = work[i * n + p], iq = work[i * n + q];
                    work[i * n + p] = c * ip - s * iq;
                    work[i * n + q] = s * ip + c * iq;
                }
                for (long i = 0; i < n; i++) {
                    vec pi = work[p * n + i], qi = work[q * n + i];
                    work[p * n + i] = c * pi - s * qi;
                    work[q * n + i] = s * pi + c * qi;
                    vec ip = v[i * n + p], iq = v[i * n + q];
                    v[i * n + p] = c * ip - s * iq;
                    v[i * n + q] = s * ip + c * iq;
                }
                work[p * n + q] = work[q * n + p] = select(turn, vec{}, x);
            }
    }
    for (long i = 0; i < n; i++) w[i] = work[i * n + i];
    for (long i = 0; i < n; i++)
        for (long j = i + 1; j < n; j++) {
            mask wrong = w[j] < w[i];
            if (!any(wrong)) continue;
            exchange(wrong, w[i], w[j]);
            for (long k = 0; k < n; k++) exchange(wrong, v[k * n + i], v[k * n + j]);
        }
}

#undef FN
#undef BIG
#undef INF
#undef NAN_
