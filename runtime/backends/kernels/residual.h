// The target's distribution at a node while drafted children fail one after the other: rules/residual.py, sampling.py.
// All threads of a block call every function, with the same arguments, and get the same answer.
#pragma once
#include "rules.h"

struct Residual {
    const Round& r;
    const Rules& s;
    const int slot;
    const RuleSetting& setting;
    double *p, *q;          // [K], of the kept ids
    i32* places;            // [V]
    const float* logits;    // [K] of the node
    const i64* ids;
    const float* log_q;     // [V], or none
    int kept;
    float total;            // of exp(logit - largest)
    double left;            // q's mass outside the siblings tried so far
    bool finite;

    __device__ Residual(const Round& round, const Rules& rules, int which)
        : r(round), s(rules), slot(which), setting(rules.settings[which]), p(rules.p + (i64)which * rules.most),
          q(rules.q + (i64)which * rules.most), places(rules.places + (i64)which * round.vocab) {}

    // Makes it that of a node; `child` is the node's first, or -1.
    __device__ void open(int node, int child) {
        const i64 at = (i64)slot * r.nodes + node;
        logits = s.logits + at * s.most;
        ids = s.ids + at * s.most;
        log_q = 0;
        if (setting.children == CHILDREN_SAMPLED && child >= 0)
            log_q = s.log_q + ((i64)slot * s.distributions + s.q_rows[(i64)slot * s.q_stride + child]) * r.vocab;
        finite = !log_q || log_q[0] - log_q[0] == 0.0f;
        left = 1.0;
        keep();
        for (int i = threadIdx.x; i < kept; i += blockDim.x) {
            p[i] = original(i);
            if (log_q) q[i] = exp((double)log_q[ids[i]]);
            places[ids[i]] = i;
        }
        __syncthreads();
    }

    __device__ void close() {
        __syncthreads();
        for (int i = threadIdx.x; i < kept; i += blockDim.x) places[ids[i]] = -1;
        __syncthreads();
    }

    // How many of the logits the sampler keeps: sampling.kept.
    __device__ void keep() {
        kept = setting.top_k < s.most ? setting.top_k : s.most;
        total = sum();
        if (setting.top_p >= 1.0) return;
        float before = 0.0f, so_far = 0.0f;
        int count = 0;
        for (; count < kept; count++) {
            const float share = original(count);
            so_far += share;
            before = so_far - share;
            if ((double)before > setting.top_p) break;
        }
        kept = count > 1 ? count : 1;
        total = sum();
    }

    __device__ float sum() const {
        double found = 0.0;
        for (int i = threadIdx.x; i < kept; i += blockDim.x) found += expf(logits[i] - logits[0]);
        return (float)block_sum(found);
    }

    // The sampler's probability of the kept id i, before any child was tried.
    __device__ float original(int i) const { return expf(logits[i] - logits[0]) / total; }

    __device__ int place(i64 token) const { return token >= 0 && token < r.vocab ? places[token] : -1; }

    __device__ double probability(i64 token) const {
        const int at = place(token);
        return at < 0 ? 0.0 : p[at];
    }

    __device__ double mass() const { return left > 1e-300 ? left : 1e-300; }

    __device__ double proposal(i64 token) const { return log_q ? exp((double)log_q[token]) / mass() : 1.0; }

    __device__ void reject(i64 token) {
        __syncthreads();  // somebody may still read p
        const int at = place(token);
        const double scale = mass();
        double found = 0.0;
        for (int i = threadIdx.x; i < kept; i += blockDim.x) {
            if (log_q) {
                p[i] = fmax(p[i] - q[i] / scale, 0.0);
                if (i == at) q[i] = 0.0;
            } else if (i == at) p[i] = 0.0;
            found += p[i];
        }
        if (log_q) left -= exp((double)log_q[token]);
        const double whole = block_sum(found);
        if (whole > 0.0)
            for (int i = threadIdx.x; i < kept; i += blockDim.x) p[i] /= whole;
        __syncthreads();
    }

    // The bonus token. Where nothing is left of p, from all kept ids alike.
    __device__ i64 draw(i64 position) const {
        if (kept == 1) return ids[0];
        double some = 0.0;
        for (int i = threadIdx.x; i < kept; i += blockDim.x) some += p[i] > 0.0 ? 1.0 : 0.0;
        const bool any = block_sum(some) > 0.0;
        double best = 0.0;
        int index = -1;
        for (int i = threadIdx.x; i < kept; i += blockDim.x) {
            const double score = (any ? log(p[i]) : 0.0)
                + (double)gumbel_of_token(r.seed[slot], position, STREAM_RESIDUAL, ids[i]);
            if (index < 0 || score > best) best = score, index = i;
        }
        return ids[block_argmax(best, index, &best)];
    }
};
