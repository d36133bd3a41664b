// Kernels that have what the step must not have, and one that has nothing of it.

extern "C" __global__ void clean(float* values) { values[0] = values[1] * values[2] + values[3]; }

extern "C" __global__ void contraction(float* values) { values[0] = __fmaf_rn(values[1], values[2], values[3]); }

extern "C" __global__ void generic_load(float* values, int which) {
  __shared__ float own[32];
  own[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  const float* place = which ? values : own;
  values[32] = place[which];
}

extern "C" __global__ void generic_store(float* values, int which) {
  __shared__ float own[32];
  own[threadIdx.x] = 0.0f;
  float* place = which ? values : own;
  place[which] = 1.0f;
  __syncthreads();
  values[threadIdx.x] = own[threadIdx.x];
}

extern "C" __global__ void local_memory(float* values, const int* places) {
  float own[32];
  for (int i = 0; i < 32; ++i) own[i] = values[i * 32 + threadIdx.x];
  for (int i = 0; i < 32; ++i) values[i] = own[places[i]];
}

extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* values) {
  float own[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) own[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) values[(i * 1024 + threadIdx.x) * 3] = own[63 - i] * own[i * 7 % 64];
}

extern "C" __global__ void atomic_float(float* values) { atomicAdd(values, 1.0f); }

extern "C" __global__ void atomic_float_with_result(float* values) { values[0] = atomicAdd(values + 1, 1.0f); }

extern "C" __global__ void atomic_double(double* values) { atomicAdd(values, 1.0); }

extern "C" __global__ void atomic_in_shared_memory(float* values) {
  __shared__ float own;
  own = 0.0f;
  __syncthreads();
  atomicAdd(&own, values[threadIdx.x]);
  __syncthreads();
  values[0] = own;
}

extern "C" __global__ void atomic_on_integers(unsigned* values) { atomicAdd(values, 1u); }
