// Inline PTX: asynchronous copies, ldmatrix, mma.sync, scoped blocks with labels and registers of the same names.
typedef unsigned short bf16;

extern "C" __global__ void tiles(const bf16* a, const bf16* b, float* c) {
    extern __shared__ __align__(128) unsigned char tile[];
    unsigned p = (unsigned)__cvta_generic_to_shared(tile) + threadIdx.x * 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(p), "l"(a + threadIdx.x * 8), "r"(16));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(p + 4096), "l"(b + threadIdx.x * 8));
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;");
    __syncthreads();
    unsigned r0, r1, r2, r3, s0, s1;
    float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(p));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(s0), "=r"(s1) : "r"(p + 4096));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(r0), "r"(r1), "r"(r2), "r"(r3), "r"(s0), "r"(s1));
    asm volatile("{ .reg .pred p; .reg .b32 t; setp.ne.b32 p, %1, 0; @p bra SKIP; mov.b32 t, 1; st.global.u32 [%0], t; SKIP: }" ::"l"(c), "r"(s0));
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %1, 0; @!p bra SKIP; st.global.u32 [%0], 7; SKIP: }" ::"l"(c + 1), "r"(s1));
    reinterpret_cast<float4*>(c)[threadIdx.x] = make_float4(d0, d1, d2, d3);
}
