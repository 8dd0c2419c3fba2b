//! WGSL kernels, their host code and their CPU twins
