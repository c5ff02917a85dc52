"""The paper's tables and figures, compared with what is built and counted here, and its authors' recipes.

Paper: "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", Ouyang et al., ICASSP 2023,
arXiv 2305.13563.
"""
