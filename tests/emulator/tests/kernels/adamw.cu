// One step of AdamW on f32 weights, with a bf16 copy for the forward pass; corrections are 1 / (1 - beta^step).
struct Rates {
    float rate, beta1, beta2, epsilon, decay, correction1, correction2;
};

extern "C" __global__ void adamw(float* weight, unsigned short* copy, float* first, float* second, const float* grad, Rates r,
                                 unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) { return; }
    float g = grad[i], w = weight[i];
    float m = r.beta1 * first[i] + (1 - r.beta1) * g, v = r.beta2 * second[i] + (1 - r.beta2) * g * g;
    w -= r.rate * (m * r.correction1 / (sqrtf(v * r.correction2) + r.epsilon) + r.decay * w);
    first[i] = m;
    second[i] = v;
    weight[i] = w;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(copy[i]) : "f"(w));
}
