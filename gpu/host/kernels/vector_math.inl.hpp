// The exponential over vectors: the formulas and coefficients of math.inl.hpp with fused multiply-adds. Include inside
// the namespace of one ISA, after math.inl.hpp and simd_*.inl.hpp.

// 2^f for |f| <= 1/2, times 2^n.
inline vf vexp2_scaled(vf f, vf n) {
  vf p = vfma(vset(kExp2C6), f, vset(kExp2C5));
  p = vfma(p, f, vset(kExp2C4));
  p = vfma(p, f, vset(kExp2C3));
  p = vfma(p, f, vset(kExp2C2));
  p = vfma(p, f, vset(kExp2C1));
  p = vfma(p, f, vset(1.0f));
  return vscale(p, n);
}

// 2^x. Requires x < 128 or NaN. Below kExp2Lowest (and for -inf) exactly 0; NaN gives NaN.
inline vf vexp2(vf x) {
  const vf n = vround(x);
  return vzero_below(vexp2_scaled(vsub(x, n), n), x, vset(kExp2Lowest));
}

// e^x, relative error about 1e-7. Requires x <= 88.7 or NaN. Below -87.3 exactly 0.
inline vf vexp(vf x) {
  const vf n = vround(vmul(x, vset(kLog2E)));
  const vf r = vfnma(n, vset(kLn2Low), vfnma(n, vset(kLn2High), x));
  return vzero_below(vexp2_scaled(vmul(r, vset(kLog2E)), n), x, vset(-87.3f));
}
