"""Hessian and Gauss-Newton matrix (products, eigenvalues, trace, spectral density) and sharpness."""
