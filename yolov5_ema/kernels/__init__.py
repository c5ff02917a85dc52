"""The computations of the blocks in plain torch, C++ and Triton, and the choice between them."""
