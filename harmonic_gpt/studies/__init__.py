"""The small experiments of Baek et al. (arXiv 2502.01628): toy points, algorithmic tasks, digits. Minutes on two CPU
cores."""
