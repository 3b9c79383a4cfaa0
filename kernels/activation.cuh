// The activations that a matrix product can apply on its way out, and their derivatives: see src/ops/linear/activation.rs.
#pragma once

// 1/(1 + exp(-x)). The fast division returns 0 for a divisor beyond 2^126, which is the limit of the quotient.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// kind: 0 identity, 1 SiLU, 2 GELU by tanh, with 1/2*(1 + tanh u) = sigmoid(2u).
__device__ __forceinline__ float gelu_gate(float z) {
    return sigmoid(2.0f * 0.7978846f * z * fmaf(0.044715f * z, z, 1.0f));
}

__device__ __forceinline__ float activation(unsigned kind, float z) {
    if (kind == 0) return z;
    return z * (kind == 1 ? sigmoid(z) : gelu_gate(z));
}

__device__ __forceinline__ float activation_derivative(unsigned kind, float z) {
    if (kind == 0) return 1.0f;
    if (kind == 1) {
        float s = sigmoid(z);
        return s * fmaf(z, 1.0f - s, 1.0f);
    }
    float g = gelu_gate(z);
    float slope = 2.0f * 0.7978846f * fmaf(3.0f * 0.044715f * z, z, 1.0f);
    return fmaf(z * g * (1.0f - g), slope, g);
}
