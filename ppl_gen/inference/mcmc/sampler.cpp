// Many Markov chains, each at its own pace: one leapfrog step of every chain, then one call of the
// log density for all of them. `State` is written in front of this file: its fields are the
// tensors of `ppl_gen.inference.mcmc.state.State`, where each is explained.
//
// NUTS: Hoffman and Gelman (2014), arXiv:1111.4246; multinomial sampling and the generalised
// criterion: Betancourt (2017), arXiv:1701.02434; without recursion, by checkpoints: Phan, Pradhan
// and Jankowiak (2019), arXiv:1912.11554; the checks across the two halves of a tree: Stan 2.21.
// Momenta are whitened: with A A' the inverse mass matrix, r ~ N(0, I), dq/dt = A r and
// dr/dt = A' grad log p(q), so that kinetic energy and criterion are those of the unit metric.

extern "C" {
double exp(double);
double log(double);
double log1p(double);
double sqrt(double);
double cos(double);
double sin(double);
double pow(double, double);
double ceil(double);
}

typedef unsigned long long word;
typedef void (*LogDensity)(void* context, const double* positions, double* values, double* gradients);

enum Phase { SEARCHING, MOVING, WAITING, DONE };
enum Kernel { NUTS, HMC, RANDOM_WALK };
enum Metric { DIAGONAL, DENSE, LOW_RANK };
enum Purpose { MOMENTUM, DIRECTION, WITHIN_BRANCH, BETWEEN_BRANCHES, PATH_LENGTH, ACCEPT, SEARCH, SHRINK };
enum Statistic { LP, ENERGY, ACCEPTANCE_RATE, TREE_DEPTH, N_STEPS, STEP_SIZE, DIVERGING };
const int STATISTICS = 7;

static const double INFINITE = __builtin_inf();

static bool is_finite(double x) { return __builtin_isfinite(x); }

// ---- random numbers: a function of chain, transition, purpose and count, with no state to keep

static word mix(word x) {  // the finaliser of SplitMix64
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

static double uniform(word key, long transition, int purpose, long count) {
    const word step = 0x9E3779B97F4A7C15ull;
    word x = mix(key + step * (word)(transition + 1));
    x = mix(x + step * (((word)(purpose + 1) << 48) + (word)count));
    return ((double)(x >> 12) + 0.5) * 0x1p-52;  // never 0 nor 1
}

// ---- vectors

static double dot(const double* a, const double* b, long n) {
    double total = 0;
    for (long i = 0; i < n; ++i) total += a[i] * b[i];
    return total;
}

static void copy(double* to, const double* from, long n) {
    for (long i = 0; i < n; ++i) to[i] = from[i];
}

static double log_add(double a, double b) {
    if (a < b) return b + log1p(exp(a - b));
    return a == -INFINITE ? a : a + log1p(exp(b - a));
}

// ---- one chain

struct Chain {
    State& s;
    const long c;
    const long dim;
    Chain(State& state, long chain) : s(state), c(chain), dim(state.dim) {}

    double* of(double* array) const { return array + c * dim; }
    double* at(double* array, long level) const { return array + (c * s.max_tree_depth + level) * dim; }
    double random(int purpose, long count) const {
        return uniform((word)s.key[c], s.transition[c], purpose, count);
    }

    // r ~ N(0, I) by Box and Muller.
    void draw_normal(double* r, int purpose, long first) const {
        for (long i = 0; i < dim; i += 2) {
            double radius = sqrt(-2 * log(random(purpose, first + i)));
            double angle = 2 * 3.14159265358979323846 * random(purpose, first + i + 1);
            r[i] = radius * cos(angle);
            if (i + 1 < dim) r[i + 1] = radius * sin(angle);
        }
    }

    // out = A r
    void apply_metric(const double* r, double* out) const {
        const double* scale = of(s.scale);
        if (s.metric == DENSE) {
            const double* factor = s.factor + c * dim * dim;
            for (long i = 0; i < dim; ++i) out[i] = dot(factor + i * dim, r, i + 1);
            return;
        }
        if (s.metric == LOW_RANK) {
            copy(out, r, dim);
            stretch(r, out);
            r = out;
        }
        for (long i = 0; i < dim; ++i) out[i] = scale[i] * r[i];
    }

    // out = A' g
    void apply_transposed(const double* g, double* out) const {
        const double* scale = of(s.scale);
        if (s.metric == DENSE) {
            const double* factor = s.factor + c * dim * dim;
            for (long i = 0; i < dim; ++i) out[i] = 0;
            for (long i = 0; i < dim; ++i) {
                const double *row = factor + i * dim, slope = g[i];
                for (long j = 0; j <= i; ++j) out[j] += row[j] * slope;
            }
            return;
        }
        for (long i = 0; i < dim; ++i) out[i] = scale[i] * g[i];
        if (s.metric == LOW_RANK) {
            copy(of(s.scratch), out, dim);
            stretch(of(s.scratch), out);
        }
    }

    // out += U diag(stretch - 1) U' x
    void stretch(const double* x, double* out) const {
        for (long k = 0; k < s.rank[c]; ++k) {
            const double* direction = s.directions + (c * s.max_rank + k) * dim;
            double amount = (s.stretch[c * s.max_rank + k] - 1) * dot(direction, x, dim);
            for (long i = 0; i < dim; ++i) out[i] += amount * direction[i];
        }
    }

    double kinetic(const double* r) const { return 0.5 * dot(r, r, dim); }

    // ---- a step, around the call of the log density

    void before_density() {
        if (s.phase[c] != SEARCHING && s.phase[c] != MOVING) return;
        double *q = of(s.position), *r = of(s.momentum), *velocity = of(s.scratch);
        const double* force = of(s.force);
        double step = s.step_size[c] * s.shrink[c] * (double)s.direction[c];
        if (s.kernel != RANDOM_WALK)
            for (long i = 0; i < dim; ++i) r[i] += 0.5 * step * force[i];
        apply_metric(r, velocity);
        double* previous = of(s.previous);
        for (long i = 0; i < dim; ++i) {
            previous[i] = q[i];
            q[i] += step * velocity[i];
        }
    }

    void after_density() {
        if (s.phase[c] != SEARCHING && s.phase[c] != MOVING) return;
        s.evaluations[c] += 1;
        if (s.kernel == RANDOM_WALK) {
            end_random_walk();
            return;
        }
        double *r = of(s.momentum), *force = of(s.force);
        double step = s.step_size[c] * s.shrink[c] * (double)s.direction[c];
        apply_transposed(of(s.gradient), force);
        for (long i = 0; i < dim; ++i) r[i] += 0.5 * step * force[i];
        double energy = kinetic(r) - s.log_prob[c];
        if (!is_finite(energy)) energy = INFINITE;
        if (s.phase[c] == SEARCHING) {
            end_search_step(energy);
        } else if (s.kernel == HMC) {
            end_hmc_step(energy);
        } else {
            end_leaf(energy);
        }
    }

    // ---- the first step size: doubled or halved until one step's acceptance crosses 0.8

    void begin_search() {
        s.phase[c] = SEARCHING;
        s.search_direction[c] = 0;
        s.search_steps[c] = 0;
        if (s.kernel == RANDOM_WALK) {
            end_search();
        } else {
            begin_search_step();
        }
    }

    void begin_search_step() {
        copy(of(s.position), of(s.tree_position), dim);
        s.shrink[c] = 1;
        draw_normal(of(s.momentum), SEARCH, (dim + 1) * s.search_steps[c]);
        apply_transposed(of(s.tree_gradient), of(s.force));
        s.direction[c] = 1;
        s.energy[c] = kinetic(of(s.momentum)) - s.tree_log_prob[c];
    }

    void end_search_step(double energy) {
        bool accepted = s.energy[c] - energy > log(0.8);
        long towards = accepted ? 1 : -1;
        if (s.search_direction[c] == 0) s.search_direction[c] = towards;
        s.search_steps[c] += 1;
        double next = s.step_size[c] * (s.search_direction[c] > 0 ? 2 : 0.5);
        bool crossed = towards != s.search_direction[c];
        if (crossed || s.search_steps[c] >= 50 || next > 1e7 || next < 1e-12) {
            end_search();
            return;
        }
        s.step_size[c] = next;
        begin_search_step();
    }

    void end_search() {
        s.average_origin[c] = log(10 * s.step_size[c]);
        if (s.kernel == RANDOM_WALK) s.average_origin[c] = log(s.step_size[c]);
        s.average_error[c] = 0;
        s.log_step_average[c] = 0;
        s.average_count[c] = 0;
        s.phase[c] = MOVING;
        begin_transition();
    }

    // Dual averaging, Hoffman and Gelman (2014), section 3.2.
    void adapt_step_size(double acceptance) {
        const double gamma = 0.05, t0 = 10, kappa = 0.75;
        double count = (double)(s.average_count[c] += 1);
        double share = 1 / (count + t0);
        s.average_error[c] += share * (s.target_accept - acceptance - s.average_error[c]);
        double log_step = s.average_origin[c] - sqrt(count) / gamma * s.average_error[c];
        double weight = pow(count, -kappa);
        s.log_step_average[c] = weight * log_step + (1 - weight) * s.log_step_average[c];
        s.step_size[c] = exp(log_step);
    }

    // ---- transitions

    void begin_transition() {
        double* r = of(s.momentum);
        draw_normal(r, MOMENTUM, 0);
        copy(of(s.position), of(s.tree_position), dim);
        if (s.kernel != RANDOM_WALK) apply_transposed(of(s.tree_gradient), of(s.force));
        s.energy[c] = -s.tree_log_prob[c] + (s.kernel == RANDOM_WALK ? 0 : kinetic(r));
        s.direction[c] = 1;
        s.steps[c] = 0;
        s.depth[c] = 0;
        s.diverging[c] = 0;
        s.sum_acceptance[c] = 0;
        s.shrink[c] = 1;
        if (s.kernel != RANDOM_WALK) shrink_step();
        if (s.kernel == HMC) begin_path();
        if (s.kernel == NUTS) begin_tree();
    }

    // Where a density is much narrower than elsewhere the usual step diverges at once, and a chain
    // would stay for good. So one transition in 20, whatever the position, makes steps of a half to
    // a sixteenth, on trajectories of no more steps than usual (Neal 2011, section 5.4.2.2).
    void shrink_step() {
        const double share = 0.05;
        double u = random(SHRINK, 0) / share;
        if (u < 1) s.shrink[c] = u < 0.25 ? 0.5 : u < 0.5 ? 0.25 : u < 0.75 ? 0.125 : 0.0625;
    }

    // Deepest tree of this transition.
    long depth_limit() const {
        if (s.shrink[c] == 1 || s.depth_count[c] == 0) return s.max_tree_depth;
        long usual = 1 + s.depth_sum[c] / s.depth_count[c];
        return usual < s.max_tree_depth ? usual : s.max_tree_depth;
    }

    void end_transition(double acceptance) {
        bool warming_up = s.transition[c] < s.warmup;
        if (warming_up) {
            if (s.shrink[c] == 1) {
                adapt_step_size(acceptance);
                s.depth_sum[c] += s.depth[c];
                s.depth_count[c] += 1;
            }
            remember_for_metric();
        } else {
            keep_draw(acceptance);
        }
        s.transition[c] += 1;
        if (s.transition[c] == s.next_stop[c] || s.kept[c] == s.chunk) {
            s.phase[c] = WAITING;
        } else {
            begin_transition();
        }
    }

    void remember_for_metric() {
        if (s.memory == 0) return;
        long row = c * s.memory + s.remembered[c] % s.memory;
        copy(s.window_positions + row * dim, of(s.tree_position), dim);
        copy(s.window_gradients + row * dim, of(s.tree_gradient), dim);
        s.window_log_probs[row] = s.tree_log_prob[c];
        s.remembered[c] += 1;
    }

    void keep_draw(double acceptance) {
        if (s.diverging[c] && s.divergences[c] < s.divergence_capacity)
            copy(s.divergence_positions + (c * s.divergence_capacity + s.divergences[c]) * dim,
                 of(s.previous), dim);
        s.divergences[c] += s.diverging[c];
        if ((s.transition[c] - s.warmup + 1) % s.thinning) return;
        long index = c * s.chunk + s.kept[c];
        copy(s.draws + index * dim, of(s.tree_position), dim);
        double* statistics = s.statistics + index * STATISTICS;
        statistics[LP] = s.tree_log_prob[c];
        statistics[ENERGY] = s.energy[c];
        statistics[ACCEPTANCE_RATE] = acceptance;
        statistics[TREE_DEPTH] = (double)s.depth[c];
        statistics[N_STEPS] = (double)s.steps[c];
        statistics[STEP_SIZE] = s.step_size[c] * s.shrink[c];
        statistics[DIVERGING] = (double)s.diverging[c];
        s.kept[c] += 1;
    }

    // ---- NUTS: a tree of leaves, doubled branch by branch

    void begin_tree() {
        const double *q = of(s.position), *r = of(s.momentum), *force = of(s.force);
        copy(of(s.left_position), q, dim);
        copy(of(s.left_momentum), r, dim);
        copy(of(s.left_force), force, dim);
        copy(of(s.right_position), q, dim);
        copy(of(s.right_momentum), r, dim);
        copy(of(s.right_force), force, dim);
        copy(of(s.tree_sum), r, dim);
        s.tree_log_weight[c] = 0;
        begin_branch();
    }

    void begin_branch() {
        bool right = random(DIRECTION, s.depth[c]) < 0.5;
        s.direction[c] = right ? 1 : -1;
        copy(of(s.position), of(right ? s.right_position : s.left_position), dim);
        copy(of(s.momentum), of(right ? s.right_momentum : s.left_momentum), dim);
        copy(of(s.force), of(right ? s.right_force : s.left_force), dim);
        double* sum = of(s.branch_sum);
        for (long i = 0; i < dim; ++i) sum[i] = 0;
        s.branch_log_weight[c] = -INFINITE;
        s.leaf[c] = 0;
    }

    void end_leaf(double energy) {
        double log_weight = s.energy[c] - energy;  // -inf where the energy is infinite
        s.steps[c] += 1;
        s.sum_acceptance[c] += log_weight > 0 ? 1 : exp(log_weight);
        if (!(log_weight > -s.max_energy_error)) {
            s.diverging[c] = 1;
            end_tree();
            return;
        }
        const double* r = of(s.momentum);
        double* sum = of(s.branch_sum);
        long leaf = s.leaf[c];
        if (leaf % 2 == 0) keep_checkpoint(leaf);
        for (long i = 0; i < dim; ++i) sum[i] += r[i];
        s.branch_log_weight[c] = log_add(s.branch_log_weight[c], log_weight);
        double share = exp(log_weight - s.branch_log_weight[c]);
        if (random(WITHIN_BRANCH, s.steps[c]) < share) {
            copy(of(s.branch_position), of(s.position), dim);
            copy(of(s.branch_gradient), of(s.gradient), dim);
            s.branch_log_prob[c] = s.log_prob[c];
        }
        if (leaf % 2 == 1 && turns_within_branch(leaf)) {
            end_tree();
            return;
        }
        copy(of(s.last_momentum), r, dim);
        s.leaf[c] = leaf + 1;
        if (s.leaf[c] == 1L << s.depth[c]) end_branch();
    }

    // Before an even leaf: the sum of the momenta so far, its own, and the one before it.
    void keep_checkpoint(long leaf) {
        long level = __builtin_popcountl(leaf >> 1);
        copy(at(s.checkpoint_sum, level), of(s.branch_sum), dim);
        copy(at(s.checkpoint_momentum, level), of(s.momentum), dim);
        copy(at(s.checkpoint_previous, level), of(s.last_momentum), dim);
    }

    // Whether one of the subtrees that end at an odd leaf turns back.
    bool turns_within_branch(long leaf) const {
        const double *last = of(s.momentum), *sum = of(s.branch_sum);
        long highest = __builtin_popcountl(leaf >> 1);
        long subtrees = __builtin_ctzl(~leaf);
        for (long level = highest; level > highest - subtrees; --level) {
            const double *first = at(s.checkpoint_momentum, level), *before = at(s.checkpoint_sum, level);
            bool halves = level < highest;
            const double *start = at(s.checkpoint_momentum, level + halves);
            const double *until = at(s.checkpoint_sum, level + halves);
            const double *end = at(s.checkpoint_previous, level + halves);
            double whole_first = 0, whole_last = 0, left_first = 0, left_start = 0, right_end = 0, right_last = 0;
            for (long i = 0; i < dim; ++i) {
                double whole = sum[i] - before[i];
                whole_first += whole * first[i];
                whole_last += whole * last[i];
                if (halves) {
                    double left = until[i] - before[i] + start[i], right = sum[i] - until[i] + end[i];
                    left_first += left * first[i];
                    left_start += left * start[i];
                    right_end += right * end[i];
                    right_last += right * last[i];
                }
            }
            if (whole_first <= 0 || whole_last <= 0) return true;
            if (halves && (left_first <= 0 || left_start <= 0 || right_end <= 0 || right_last <= 0)) return true;
        }
        return false;
    }

    void end_branch() {
        // A new branch is preferred to the old tree where it weighs more.
        double log_ratio = s.branch_log_weight[c] - s.tree_log_weight[c];
        if (random(BETWEEN_BRANCHES, s.depth[c]) < exp(log_ratio)) {
            copy(of(s.tree_position), of(s.branch_position), dim);
            copy(of(s.tree_gradient), of(s.branch_gradient), dim);
            s.tree_log_prob[c] = s.branch_log_prob[c];
        }
        s.tree_log_weight[c] = log_add(s.tree_log_weight[c], s.branch_log_weight[c]);
        bool right = s.direction[c] > 0;
        // Momenta on both sides of the seam, and at both ends of the new tree.
        double *outer = of(right ? s.right_momentum : s.left_momentum);
        const double *far = of(right ? s.left_momentum : s.right_momentum);
        const double *first = at(s.checkpoint_momentum, 0), *last = of(s.momentum);
        double *tree = of(s.tree_sum);
        const double *branch = of(s.branch_sum);
        double whole_far = 0, whole_last = 0, old_far = 0, old_first = 0, new_outer = 0, new_last = 0;
        for (long i = 0; i < dim; ++i) {
            double whole = tree[i] + branch[i], old = tree[i] + first[i], grown = branch[i] + outer[i];
            whole_far += whole * far[i];
            whole_last += whole * last[i];
            old_far += old * far[i];
            old_first += old * first[i];
            new_outer += grown * outer[i];
            new_last += grown * last[i];
            tree[i] = whole;
        }
        bool turns = whole_far <= 0 || whole_last <= 0 || old_far <= 0 || old_first <= 0 ||
                     new_outer <= 0 || new_last <= 0;
        copy(of(right ? s.right_position : s.left_position), of(s.position), dim);
        copy(of(right ? s.right_force : s.left_force), of(s.force), dim);
        copy(outer, last, dim);
        s.depth[c] += 1;
        if (turns || s.depth[c] == depth_limit()) {
            end_transition(s.sum_acceptance[c] / (double)s.steps[c]);
        } else {
            begin_branch();
        }
    }

    // A branch that turns or diverges adds nothing to the tree, its depth included.
    void end_tree() {
        end_transition(s.sum_acceptance[c] / (double)s.steps[c]);
    }

    // ---- HMC: a path of random length, then Metropolis

    void begin_path() {
        double length = s.path_length * (0.5 + random(PATH_LENGTH, 0));
        double steps = ceil(length / s.step_size[c]);
        s.leaf[c] = steps < 1 ? 1 : steps > s.max_steps ? s.max_steps : (long)steps;
    }

    void end_hmc_step(double energy) {
        double log_ratio = s.energy[c] - energy;
        s.steps[c] += 1;
        if (!(log_ratio > -s.max_energy_error)) s.diverging[c] = 1;
        if (!s.diverging[c] && s.steps[c] < s.leaf[c]) return;
        accept(log_ratio);
    }

    // ---- random walk: A r is the proposal

    void end_random_walk() {
        s.steps[c] = 1;
        double log_ratio = s.log_prob[c] - s.tree_log_prob[c];
        accept(is_finite(s.log_prob[c]) ? log_ratio : -INFINITE);
    }

    void accept(double log_ratio) {
        double acceptance = log_ratio > 0 ? 1 : exp(log_ratio);
        if (!s.diverging[c] && random(ACCEPT, 0) < acceptance) {
            copy(of(s.tree_position), of(s.position), dim);
            copy(of(s.tree_gradient), of(s.gradient), dim);
            s.tree_log_prob[c] = s.log_prob[c];
        }
        end_transition(acceptance);
    }
};

// Advance the chains from first to last - 1 until one of them waits, or for a number of steps.
// Returns the number of steps made.
extern "C" long advance(State* state, long first, long last, long most, LogDensity density, void* context) {
    State& s = *state;
    for (long step = 0; step < most; ++step) {
        bool moving = false;
        for (long c = first; c < last; ++c) {
            Chain(s, c).before_density();
            moving |= s.phase[c] == SEARCHING || s.phase[c] == MOVING;
        }
        if (!moving) return step;
        density(context, s.position + first * s.dim, s.log_prob + first, s.gradient + first * s.dim);
        bool waits = false;
        for (long c = first; c < last; ++c) {
            bool moved = s.phase[c] == SEARCHING || s.phase[c] == MOVING;
            Chain(s, c).after_density();
            waits |= moved && s.phase[c] == WAITING;
        }
        if (waits) return step + 1;
    }
    return most;
}

extern "C" void begin_search(State* state, long chain) { Chain(*state, chain).begin_search(); }

extern "C" void begin_transition(State* state, long chain) {
    state->phase[chain] = MOVING;
    Chain(*state, chain).begin_transition();
}
