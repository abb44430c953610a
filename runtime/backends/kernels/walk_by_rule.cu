// The walks of `strict`, `cascade`, `lantern` and `lantern++`, children sampled, top-k or coupled, without looking ahead:
// rules/strict.py, relaxed.py, cascade.py, lantern.py. A block of at most 256 threads a slot; all go the same way.
#include "follow.h"
#include "residual.h"

struct ByRule {
    const Round& r;
    const Rules& s;
    const int slot, kind;
    Residual residual;
    const i64 *parents, *tokens;
    int node, depth, run;  // `run`: how many of the newest tokens a relaxation let pass
    i64 position;

    __device__ ByRule(const Round& round, const Rules& rules, int which)
        : r(round), s(rules), slot(which), kind(round.rule[which]), residual(round, rules, which),
          parents(parents_of(round, which)), tokens(round.tree_tokens + (i64)which * round.nodes), run(0) {}

    __device__ void took(int cause) { run = cause >= INTERCHANGEABLE ? run + 1 : 0; }

    __device__ int first_child() const {
        for (int n = node + 1; n < r.nodes && parents[n] <= node; n++)
            if (parents[n] == node) return n;
        return r.nodes;
    }

    __device__ bool is_child(int n) const { return n < r.nodes && parents[n] == node; }

    __device__ Step operator()(int at, int level) {
        node = at, depth = level, position = r.done[slot] + level;
        const int first = first_child();
        residual.open(node, first < r.nodes ? first : -1);
        Step step = {0, -1, DRAWN, residual.finite};
        if (residual.finite) step = residual.setting.children == CHILDREN_COUPLED ? race(first) : reject(first);
        residual.close();
        return step;
    }

    // children -------------------------------------------------------------------------------------------------
    // Whether a child may pass by relaxation.
    __device__ bool is_supported(int child) const {
        const RuleSetting& setting = residual.setting;
        if (kind == RULE_STRICT || (setting.row_ends && s.row_starts[position])) return false;
        if (setting.cap && run >= setting.cap) return false;
        const int at = residual.place(tokens[child]);
        const float least = (float)((double)residual.logits[0] + setting.log_guard);
        return at >= 0 && residual.logits[at] >= least && r.origins[(i64)slot * r.nodes + child] != BY_NOBODY;
    }

    __device__ double alike(int one, int other) const {
        return (double)s.similarity[((i64)slot * r.nodes + one) * r.nodes + other];
    }

    // A child's relaxed p; no rule here changes q.
    __device__ double weigh(int child, int first, double p) const {
        if (kind == RULE_CASCADE) return p + lent_by_siblings(child, first);
        return p + lent_by_neighbours(tokens[child], p);
    }

    __device__ double lent_by_siblings(int child, int first) const {
        const double tau = residual.setting.tau_pos;
        double lent = 0.0;
        for (int y = first; is_child(y); y++) {
            if (y == child || tokens[y] == tokens[child] || !(alike(child, y) >= tau)) continue;
            bool seen = false;  // each token lends once
            for (int z = first; z < y; z++)
                seen |= z != child && tokens[z] == tokens[y] && alike(child, z) >= tau;
            if (!seen) lent += residual.probability(tokens[y]);
        }
        return lent;
    }

    // The nearest neighbours lend in order, as long as the sum stays within the budget.
    __device__ double lent_by_neighbours(i64 token, double p) const {
        __shared__ double shares[MOST_THREADS];
        const RuleSetting& setting = residual.setting;
        const double budget = (kind == RULE_LANTERN_PLUS ? setting.budget * p : setting.budget) * (1 + 1e-9);
        const int near = setting.near < s.near ? setting.near : s.near;
        double lent = 0.0;
        for (int start = 0; start < near; start += blockDim.x) {
            const int mine = start + threadIdx.x, count = near - start < (int)blockDim.x ? near - start : blockDim.x;
            __syncthreads();
            shares[threadIdx.x] = mine < near ? residual.probability(s.neighbours[token * s.near + mine]) : 0.0;
            __syncthreads();
            for (int i = 0; i < count; i++) {
                if (lent + shares[i] > budget) return lent;
                lent += shares[i];
            }
        }
        return lent;
    }

    // decisions ------------------------------------------------------------------------------------------------
    // Recursive rejection with the relaxed weights: Strict.decide, Relaxed._reject.
    __device__ Step reject(int first) {
        for (int n = first; is_child(n); n++) {
            const double u = uniform_of_token(r.seed[slot], position, STREAM_ACCEPT, tokens[n]);
            const double p = residual.probability(tokens[n]), q = residual.proposal(tokens[n]);
            const bool strict = u * q < p;
            const bool passed = is_supported(n) && reweighs() ? u * q < weigh(n, first, p) : strict;
            if (passed) return {tokens[n], n, strict ? STRICT : relaxation(), true};
            residual.reject(tokens[n]);
        }
        const int last = last_chance(first, false);
        if (last >= 0) return {tokens[last], last, CONVERGED, true};
        return {residual.draw(position), -1, DRAWN, true};
    }

    // The target's own draw first, then a stand-in: Relaxed._race and _stand_in.
    __device__ Step race(int first) {
        const i64 token = r.drawn[(i64)slot * r.nodes + node];
        const int child = child_with(r, slot, node, token);
        if (child >= 0) return {token, child, STRICT, true};
        bool any = false;
        for (int n = first; is_child(n); n++) any |= is_supported(n);
        if (!any) return {token, -1, DRAWN, true};
        if (reweighs()) {
            const double top = (double)best_score();
            double most = 0.0;
            int best = -1;
            for (int n = first; is_child(n); n++) {
                if (!is_supported(n)) continue;
                const double p = residual.probability(tokens[n]), allowance = log(weigh(n, first, p) / p);
                const double rest = allowance - (top - (double)score(residual.place(tokens[n])));
                if (allowance >= 0.0 && rest >= 0.0 && (best < 0 || rest > most)) best = n, most = rest;
            }
            if (best >= 0) return {tokens[best], best, relaxation(), true};
        }
        const int last = last_chance(first, true);
        if (last >= 0) return {tokens[last], last, CONVERGED, true};
        return {token, -1, DRAWN, true};
    }

    __device__ bool reweighs() const { return kind != RULE_CASCADE || residual.setting.tau_pos == residual.setting.tau_pos; }

    __device__ int relaxation() const { return kind == RULE_CASCADE ? INTERCHANGEABLE : RELAXED; }

    // log p + g of a kept id, up to a constant: rules.exact.race.
    __device__ float score(int i) const {
        if (residual.kept == 1) return 0.0f;
        return residual.logits[i] + r.noise[((i64)slot * r.levels + depth) * r.vocab + residual.ids[i]];
    }

    __device__ float best_score() const {
        double best = 0.0;
        int index = -1;
        for (int i = threadIdx.x; i < residual.kept; i += blockDim.x)
            if (index < 0 || (double)score(i) > best) best = (double)score(i), index = i;
        block_argmax(best, index, &best);
        return (float)best;
    }

    // A child that passes although every test failed, or -1: Cascade.last_chance.
    __device__ int last_chance(int first, bool coupled) const {
        if (kind != RULE_CASCADE) return -1;
        int best = -1;
        float most = 0.0f;
        for (int n = first; is_child(n); n++) {
            if (!is_supported(n)) continue;
            const int at = residual.place(tokens[n]);
            const float ranked = coupled ? score(at) : logf(residual.original(at));
            if (best < 0 || ranked > most) best = n, most = ranked;
        }
        return best >= 0 && alike(node, best) >= residual.setting.tau_seq ? best : -1;
    }
};

extern "C" __global__ void walk_by_rule(Round r, Rules s) {
    const int slot = blockIdx.x;
    if (r.rule[slot] <= RULE_EXACT) return;
    ByRule decide(r, s, slot);
    follow(r, slot, threadIdx.x == 0, decide);
}
